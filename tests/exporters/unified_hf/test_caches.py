"""Caches of keys and values: their scales, alone and beside weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from helpers.exporters_models import (
    export,
    json_of,
    quantized,
    same,
    tensors_of,
    tokens,
)


def test_a_cache_alone(tmp_path: Path) -> None:
    model = quantized({**octavo.FP8_KV_CFG, "algorithm": "max"})
    directory = export(model, tmp_path / "out")
    quantization = json_of(directory / "hf_quant_config.json")["quantization"]

    assert (quantization["quant_algo"], quantization["kv_cache_quant_algo"]) == (None, "FP8")
    served = octavo.load_quantized(directory)
    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        assert torch.equal(served(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("cache", ["FP8_KV_CFG", "NVFP4_KV_CFG"])
def test_scales_of_caches_are_maxima_over_448(cache: str, tmp_path: Path) -> None:
    model = quantized(
        octavo.merge_configs("INT8_WEIGHT_ONLY_CFG", {**octavo.preset(cache), "algorithm": "max"})
    )
    tensors = tensors_of(export(model, tmp_path / "out"))
    (state,) = ("amax",) if cache == "FP8_KV_CFG" else ("global_amax",)

    attention = model.get_submodule("model.layers.1.self_attn")
    for letter in "kv":
        scale = tensors[f"model.layers.1.self_attn.{letter}_proj.{letter}_scale"]
        assert same(scale, getattr(attention.get_submodule(f"{letter}_bmm_quantizer"), state) / 448)
