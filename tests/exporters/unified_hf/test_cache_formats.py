"""The cache of a checkpoint has one format, in all layers, for keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import octavo
from helpers.exporters_models import export, quantized
from octavo.core.errors import ExportError

FP8 = {"num_bits": (4, 3)}

NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}


@pytest.mark.parametrize(
    ("keys", "values", "found"),
    [
        (FP8, {"num_bits": 8}, r"e4m3 tensor at .*layers\.0\.self_attn\.k_bmm.*; int8 tensor at .*v_bmm"),
        (FP8, NVFP4, r"e4m3 tensor at .*k_bmm_quantizer.*; e2m1 block\{-1:16\} .* at .*v_bmm_quantizer"),
        ({"num_bits": 8}, {"num_bits": 8}, r"int8 tensor at .*k_bmm_quantizer, .*v_bmm_quantizer"),
    ],
    ids=["a wrong one", "one of each", "another format"],
)
def test_a_cache_has_one_of_two_formats(
    keys: dict[str, Any], values: dict[str, Any], found: str, tmp_path: Path
) -> None:
    config = octavo.INT8_WEIGHT_ONLY_CFG
    for letter, cfg in (("k", keys), ("v", values)):
        config["quant_cfg"].append({"quantizer_name": f"*{letter}_bmm_quantizer", "cfg": cfg})

    with pytest.raises(
        ExportError, match=rf"has one format, e4m3 tensor or e2m1 block\{{-1:16\}} .*; found {found}"
    ):
        export(quantized(config), tmp_path / "out")


def test_keys_alone_are_refused(tmp_path: Path) -> None:
    config = octavo.FP8_DEFAULT_CFG
    config["quant_cfg"].append({"quantizer_name": "*k_bmm_quantizer", "cfg": FP8})

    with pytest.raises(
        ExportError, match=r"keys and values or neither, and model\.layers\.0\..*k_bmm_quantizer"
    ):
        export(quantized(config), tmp_path / "out")


def test_a_cache_of_some_layers_is_warned_of_and_read_as_engines_do(tmp_path: Path) -> None:
    config = octavo.FP8_DEFAULT_CFG
    config["quant_cfg"].append({"quantizer_name": "model.layers.0.*[kv]_bmm_quantizer", "cfg": FP8})

    report = octavo.export_hf_checkpoint(quantized(config), export_dir=tmp_path / "out", quiet=True)

    assert report.warnings == (
        "engines quantize the cache of all layers, with the scale 1 where a checkpoint has none, and 1 layers have "
        "theirs off (model.layers.1.self_attn.k_bmm_quantizer)",
    )
    served = octavo.load_quantized(tmp_path / "out")
    quantizer = served.get_submodule("model.layers.1.self_attn.k_bmm_quantizer")
    assert quantizer.amax == 448
