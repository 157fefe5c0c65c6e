"""Metadata that the reader misunderstands or trips over: each should be a CheckpointError."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
from helpers.exporters_models import MLP, export, quantized, with_json
from octavo.core.errors import CheckpointError


@pytest.mark.xfail(strict=True, reason="whatever is not 'NVFP4' is read as FP8, 'nvfp4' and 'INT8' too")
@pytest.mark.parametrize("name", ["INT8", "FP9"])
def test_an_unknown_cache_format(name: str, tmp_path: Path) -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    directory = export(quantized(config), tmp_path / "out")
    with_json(
        directory / "hf_quant_config.json", lambda data: data["quantization"].update(kv_cache_quant_algo=name)
    )

    with pytest.raises(CheckpointError, match=f"kv_cache_quant_algo.*{name}"):
        octavo.load_quantized(directory)


@pytest.mark.xfail(
    strict=True, reason="quant_algo is read in any case, kv_cache_quant_algo is not: 'nvfp4' is FP8"
)
def test_a_cache_format_in_lower_case(tmp_path: Path) -> None:
    config = octavo.merge_configs("INT8_WEIGHT_ONLY_CFG", {**octavo.NVFP4_KV_CFG, "algorithm": "max"})
    directory = export(quantized(config), tmp_path / "out")
    with_json(
        directory / "hf_quant_config.json",
        lambda data: data["quantization"].update(kv_cache_quant_algo="nvfp4"),
    )

    served = octavo.load_quantized(directory)

    assert served.get_submodule("model.layers.0.self_attn.k_bmm_quantizer").spec.element == "e2m1"


@pytest.mark.xfail(strict=True, reason="KeyError, AttributeError")
@pytest.mark.parametrize("layer", [{}, {"group_size": 16}, {"quant_algo": 8}, "FP8"])
def test_a_layer_without_an_algorithm(layer: object, tmp_path: Path) -> None:
    directory = export(quantized("FP8_DEFAULT_CFG"), tmp_path / "out")
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": {MLP: layer}}
    with_json(directory / "hf_quant_config.json", lambda data: data["quantization"].update(mixed))

    with pytest.raises(CheckpointError, match=MLP):
        octavo.load_quantized(directory)


@pytest.mark.xfail(strict=True, reason="AttributeError: 'int' object has no attribute 'upper'")
def test_an_algorithm_that_is_no_name(tmp_path: Path) -> None:
    directory = export(quantized("FP8_DEFAULT_CFG"), tmp_path / "out")
    with_json(directory / "hf_quant_config.json", lambda data: data["quantization"].update(quant_algo=8))

    with pytest.raises(CheckpointError, match=r"quant_algo.*8"):
        octavo.load_quantized(directory)


@pytest.mark.xfail(
    strict=True,
    reason="'unexpected …pre_quant_scale': nothing says that smoothed checkpoints are not read yet",
)
def test_a_smoothed_checkpoint_is_refused_for_what_it_is(shared: Path) -> None:
    directory = shared / "reference" / "modelopt" / "dense" / "INT8_SMOOTHQUANT_CFG"

    with pytest.raises(CheckpointError, match=r"pre_quant_scale.* not "):
        octavo.load_quantized(directory)


@pytest.mark.xfail(
    strict=True, reason="RuntimeError 'chunk expects `chunks` to be greater than 0' from transformers"
)
def test_a_checkpoint_of_a_model_with_fused_experts_is_refused_by_name(shared: Path) -> None:
    directory = shared / "reference" / "modelopt" / "moe" / "FP8_DEFAULT_CFG"

    with pytest.raises(octavo.OctavoError, match="experts"):
        octavo.load_quantized(directory)
