"""Several formats in one checkpoint: quant_cfg.json, and what stages of a pipeline can say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import octavo
from helpers.exporters_models import json_of
from helpers.tensorrt_llm_models import exported, quantized_llama

INT4_MLP = {"quantizer_name": "*mlp*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 128}}}
NO_INPUTS = {"quantizer_name": "*mlp*input_quantizer", "enable": False}


def mixed(*entries: dict[str, Any]) -> dict[str, Any]:
    config = octavo.merge_configs("FP8_DEFAULT_CFG")
    config["quant_cfg"] += entries
    return dict(config)


def test_every_layers_format_is_in_a_file_of_its_own(tmp_path: Path) -> None:
    _, config = exported(quantized_llama(mixed(INT4_MLP, NO_INPUTS)), tmp_path / "out")

    both = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
    assert config["quantization"] == both
    layers = json_of(tmp_path / "out" / "quant_cfg.json")
    int4 = {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": True}
    expected = {
        f"transformer.layers.{block}.{name}": {"quant_algo": "FP8"} if "attention" in name else int4
        for block in range(2)
        for name in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
    }
    assert layers == {**both, "quantized_layers": expected}


def test_stages_that_are_alike_share_the_file(tmp_path: Path) -> None:
    model = quantized_llama(mixed(INT4_MLP, NO_INPUTS))

    exported(model, tmp_path / "out", inference_pipeline_parallel=2)

    layers = json_of(tmp_path / "out" / "quant_cfg.json")["quantized_layers"]
    names = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
    assert layers.keys() == {f"transformer.layers.0.{name}" for name in names}


def test_stages_that_differ_are_refused(tmp_path: Path) -> None:
    model = quantized_llama(mixed({"quantizer_name": "*layers.1.mlp*", "enable": False}))

    with pytest.raises(octavo.ExportError, match=r"layers\.0\.mlp\.fc.*one config\.json cannot say"):
        exported(model, tmp_path / "out", inference_pipeline_parallel=2)
    assert not (tmp_path / "out").exists()


def test_layers_that_are_joined_need_one_format(tmp_path: Path) -> None:
    model = quantized_llama(mixed({"quantizer_name": "*v_proj*", "enable": False}))

    with pytest.raises(octavo.ExportError, match=r"layers\.0\.attention\.qkv .* one format.*v_proj: plain"):
        exported(model, tmp_path / "out")
