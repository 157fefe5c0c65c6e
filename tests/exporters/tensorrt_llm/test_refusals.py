"""What is no TensorRT-LLM checkpoint, and what the message says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.exporters_models import digests
from helpers.tensorrt_llm_models import DECODER, exported, quantized_llama, tiny
from helpers.tiny import tiny_llama


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decoder_type": "lama"}, octavo.ExportError, "unknown decoder type 'lama'.*Did you mean 'llama'"),
        ({"decoder_type": "gpt"}, octavo.ExportError, "'gpt' is not that of models of type 'llama'.*'llama'"),
        ({"target": "trtlm"}, octavo.ConfigError, "unknown target 'trtlm'.*Did you mean 'trtllm'"),
        ({"dtype": torch.float32}, octavo.ExportError, "float16 or bfloat16; found torch.float32"),
        ({"inference_tensor_parallel": 3}, octavo.ExportError, "4 is not divisible by 3|3 ranks"),
        ({"inference_pipeline_parallel": 3}, octavo.ExportError, "2 layers are not divisible by 3 stages"),
        ({"export_dir": None}, octavo.ExportError, "export_dir is missing"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    chosen = {"export_dir": tmp_path / "out", "quiet": True, **options}
    with pytest.raises(error, match=message):
        octavo.export_tensorrt_llm_checkpoint(tiny_llama(torch.bfloat16), **chosen)
    assert not (tmp_path / "out").exists()


def test_a_type_of_model_without_names(tmp_path: Path) -> None:
    model = tiny("stablelm", **DECODER)
    with pytest.raises(octavo.ExportError, match="models of type 'stablelm' are not known; known are llama"):
        exported(model, tmp_path / "out")


def test_positions_scaled_by_longrope(tmp_path: Path) -> None:
    factors = [1.0] * 16
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    model = tiny("phi3", **DECODER, rope_parameters=rope, original_max_position_embeddings=32)
    with pytest.raises(octavo.ExportError, match=r"scaled by longrope.*export_hf_checkpoint"):
        exported(model, tmp_path / "out")


def test_a_module_that_no_plugin_knows(tmp_path: Path) -> None:
    with pytest.raises(octavo.ExportError, match="no plugin knows the config of this Linear"):
        exported(nn.Linear(4, 4).bfloat16(), tmp_path / "out")


def test_a_format_without_a_place(tmp_path: Path) -> None:
    model = quantized_llama("MXFP8_DEFAULT_CFG")
    with pytest.raises(octavo.ExportError, match=r"14 layers have formats .*q_proj.*stored as FP8, .*NVFP4"):
        exported(model, tmp_path / "out")


def test_a_cache_that_is_half_quantized(tmp_path: Path) -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    config["quant_cfg"].append({"quantizer_name": "*layers.1*v_bmm_quantizer", "enable": False})
    with pytest.raises(octavo.ExportError, match=r"layers\.1\.self_attn\.v_bmm_quantizer are off"):
        exported(quantized_llama(config), tmp_path / "out")


def test_a_quantized_head_whose_rows_int4_appends_to(tmp_path: Path) -> None:
    config = octavo.merge_configs("INT4_BLOCKWISE_WEIGHT_ONLY_CFG")
    entry = next(e for e in config["quant_cfg"] if e["quantizer_name"] == "*weight_quantizer")
    config["quant_cfg"].append({**entry, "quantizer_name": "lm_head.weight_quantizer"})
    with pytest.raises(octavo.ExportError, match=r"head is quantized and has 66 rows.*multiple of 64"):
        exported(quantized_llama(config, vocab_size=66), tmp_path / "out")


def test_values_that_float16_does_not_hold(tmp_path: Path) -> None:
    model = tiny_llama(torch.bfloat16)
    with torch.no_grad():
        model.get_parameter("model.layers.1.input_layernorm.weight")[3] = 1e6
    with pytest.raises(
        octavo.ExportError, match=r"layers\.1\.input_layernorm\.weight has NaN or inf.*float16"
    ):
        exported(model, tmp_path / "out", dtype=torch.float16)


def test_a_folder_that_is_not_ours_stays(tmp_path: Path) -> None:
    model = tiny_llama(torch.bfloat16)
    exported(model, tmp_path / "out")
    before = digests(tmp_path / "out")

    with pytest.raises(octavo.ExportError, match="is not empty"):
        exported(model, tmp_path / "out")
    assert digests(tmp_path / "out") == before
    exported(model, tmp_path / "out", overwrite=True)
    assert digests(tmp_path / "out") == before


def test_fp32_models_become_float16_and_the_report_says_so(tmp_path: Path) -> None:
    report = octavo.export_tensorrt_llm_checkpoint(tiny_llama(), export_dir=tmp_path / "out", quiet=True)

    assert report.warnings == ("tensors of dtype float32 are written as float16",)


def test_folders_of_ranks_are_known_as_quantized(tmp_path: Path) -> None:
    exported(tiny_llama(torch.bfloat16), tmp_path / "out")

    found = octavo.plugins().exporter_for(tmp_path / "out")

    assert found is not None
    assert found.name == "tensorrt_llm"
    assert re.search("rank0", " ".join(digests(tmp_path / "out")))
