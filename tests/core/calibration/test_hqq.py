"""The algorithm `hqq`: scales from the weights alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.core.errors import UnsupportedError


def quantized(algorithm: Any, weights: dict[str, Any]) -> Any:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Embedding(8, 64))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(32, 64, generator=generator) ** 3)  # type: ignore[operator]
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": weights},
    ]
    return octavo.quantize(model, {"quant_cfg": rules, "algorithm": algorithm}, quiet=True)


@pytest.mark.parametrize(
    "weights", [{"num_bits": 4, "block_sizes": {-1: 32}}, {"num_bits": 3, "axis": 0}], ids=["blocks", "rows"]
)
def test_the_sum_of_powers_of_errors_is_less(weights: dict[str, Any]) -> None:
    errors = []
    for algorithm in ("max", {"method": "hqq", "power": 0.7}, "hqq"):
        layer = quantized(algorithm, weights)[0]
        change = (layer.weight_quantizer(layer.weight) - layer.weight).detach().abs()
        errors.append((float(change.pow(0.7).sum()), float(change.square().sum())))

    largest, robust, squared = errors
    assert robust[0] < min(largest[0], squared[0])
    assert squared[1] < min(largest[1], robust[1])


def test_a_format_that_it_does_not_know() -> None:
    with pytest.raises(UnsupportedError) as caught:
        quantized("hqq", {"num_bits": (4, 3), "axis": None})

    lines = str(caught.value).splitlines()
    assert lines[0].startswith(
        "0.weight_quantizer: algorithm 'hqq' does not know FP8 weights, found e4m3 tensor;"
    )
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows["hqq"] == ["yes", "yes", "-", "-", "-", "-"]
    assert rows["mse"] == ["yes", "yes", "yes", "yes", "max", "max"]
    assert len(lines) <= 20
