"""Every algorithm with every family of formats: refused, with the table of what is known, or not, as the table says."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo
from octavo.core.calibration.algorithms import algorithm_named
from octavo.core.calibration.support import FAMILIES, check_supported, matrix, support
from octavo.core.errors import UnsupportedError

FORMATS: dict[str, dict[str, Any]] = {
    "INT": {"num_bits": 8, "axis": 0},
    "INT blocks": {"num_bits": 4, "block_sizes": {-1: 32}},
    "FP8": {"num_bits": (4, 3), "axis": None},
    "NVFP4 static": {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "static", "scale_bits": (4, 3)}},
    "NVFP4": {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}},
    "MX": {"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
}


def quantized(family: str) -> nn.Module:
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": FORMATS[family]},
    ]
    return octavo.quantize(
        nn.Sequential(nn.Linear(64, 32)), {"quant_cfg": rules, "algorithm": "max"}, quiet=True
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_table_says_is_what_happens(family: str) -> None:
    model, column = quantized(family), 1 + FAMILIES.index(family)
    cells = {row[0]: row[column] for row in support()}

    assert cells["max"] == "yes"
    for name, cell in cells.items():
        algorithm = algorithm_named(name)()
        if cell != "-":
            check_supported(model, [algorithm])
            continue
        with pytest.raises(UnsupportedError) as caught:
            check_supported(model, [algorithm])
        first, _, table = str(caught.value).partition("\n")
        assert first.startswith(
            f"0.weight_quantizer: algorithm {name!r} does not know {family} weights, found "
        )
        assert first.endswith("; choose another algorithm or format for this layer:")
        assert table == matrix()


def test_algorithms_of_each_kind() -> None:
    """Some know all formats, some leave weights the scales they have, and some refuse."""
    rows = {row[0]: row[1:] for row in support()}

    assert rows["gptq"] == ("yes",) * 6
    assert rows["mse"] == ("yes", "yes", "yes", "yes", "max", "max")
    assert rows["smoothquant"] == ("yes", "max", "max", "max", "max", "max")
    assert rows["hqq"] == ("yes", "yes", "-", "-", "-", "-")
