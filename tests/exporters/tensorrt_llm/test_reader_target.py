"""`target="trtllm"`: what the engine builder's reader takes, where that is not what the peer writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from helpers.tensorrt_llm_models import DECODER, exported, quantized_llama, tiny
from helpers.tiny import token_batches
from octavo.core.model.export_report import ExportReport


def report_of(model: torch.nn.Module, folder: Path) -> ExportReport:
    return octavo.export_tensorrt_llm_checkpoint(model, export_dir=folder, quiet=True, target="trtllm")


def test_int8_weights_are_plain_since_the_reader_rounds_them_itself(tmp_path: Path) -> None:
    model = quantized_llama("INT8_WEIGHT_ONLY_CFG")
    report = report_of(model, tmp_path / "out")
    tensors, config = exported(model, tmp_path / "again", target="trtllm")

    layer = "transformer.layers.0.attention.dense"
    expected = model.get_submodule("model.layers.0.self_attn.o_proj").weight
    assert torch.equal(tensors[f"{layer}.weight"], expected)
    assert f"{layer}.weights_scaling_factor" not in tensors
    assert config["quantization"]["quant_algo"] == "W8A16"
    assert any(
        "weights of 10 layers are plain" in text and "reader quantizes" in text for text in report.differences
    )


def test_fields_that_the_reader_of_qwen2_needs(tmp_path: Path) -> None:
    config = {**DECODER, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    model = octavo.quantize(tiny("qwen2", **config), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)
    _, peer = exported(model, tmp_path / "peer")
    _, ours = exported(model, tmp_path / "ours", target="trtllm")

    added = {key: ours[key] for key in ours.keys() - peer.keys()}
    assert added == {"seq_length": 64, "qwen_type": "qwen2", "rotary_base": 1e6}
    differences = report_of(model, tmp_path / "report").differences
    assert "config.json: seq_length is 64 instead of nothing" in differences


def test_excluded_are_the_readers_own_patterns_and_every_plain_layer(tmp_path: Path) -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG")
    config["quant_cfg"].append({"quantizer_name": "*layers.0.mlp*", "enable": False})
    model = quantized_llama(config)
    _, peer = exported(model, tmp_path / "peer")
    _, ours = exported(model, tmp_path / "ours", target="trtllm")

    assert peer["quantization"]["exclude_modules"] == ["lm_head", "transformer.layers.0.mlp*"]
    mlp = [f"transformer.layers.0.mlp.{name}" for name in ("fc", "gate", "proj")]
    patterns = [
        "lm_head",
        "router",
        "vocab_embedding",
        "position_embedding",
        "block_embedding",
        "shared_expert_gate",
    ]
    assert ours["quantization"]["exclude_modules"] == [*(f"*{name}" for name in patterns), "lm_head", *mlp]


@pytest.mark.parametrize("preset", ["INT8_DEFAULT_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"])
def test_a_factor_of_ones_where_the_reader_wants_one(tmp_path: Path, preset: str) -> None:
    model = quantized_llama(preset)
    peer, _ = exported(model, tmp_path / "peer")
    ours, _ = exported(model, tmp_path / "ours", target="trtllm")

    name = "transformer.layers.1.mlp.proj.prequant_scaling_factor"
    assert name not in peer
    assert torch.equal(ours[name], torch.ones(256, dtype=torch.bfloat16))
    differences = report_of(model, tmp_path / "report").differences
    assert any(text.startswith("10 layers have a prequant_scaling_factor of ones") for text in differences)


def test_rotary_scaling_and_partial_rotation(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0, "partial_rotary_factor": 0.5}
    model = tiny("nemotron", **DECODER, rope_parameters=rope)

    _, config = exported(model, tmp_path / "out", target="trtllm")

    assert (config["rotary_base"], config["rotary_pct"]) == (500000.0, 0.5)
    assert config["rotary_scaling"] == {"rope_type": "linear", "factor": 4.0, "type": "linear"}
    assert config["hidden_act"] == "squared-relu"


def test_formats_that_the_builder_refuses(tmp_path: Path) -> None:
    model = quantized_llama("NVFP4_AWQ_LITE_CFG")
    with pytest.raises(
        octavo.ExportError, match=r"does not load 10 layers: .*NVFP4_AWQ: no engine builder knows"
    ):
        exported(model, tmp_path / "out", target="trtllm")
    small = octavo.with_block_size(octavo.W4A8_AWQ_BETA_CFG, 64)
    with pytest.raises(octavo.ExportError, match="takes W4A8_AWQ with blocks of 128 only"):
        exported(quantized_llama({**small, "algorithm": "max"}), tmp_path / "out", target="trtllm")


def test_the_peers_bytes_have_no_differences(tmp_path: Path) -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")

    report = octavo.export_tensorrt_llm_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    assert (report.exporter, report.differences, report.warnings) == ("tensorrt_llm", (), ())


def test_the_target_of_other_exports_is_the_pytorch_backend(tmp_path: Path) -> None:
    model = quantized_llama("FP8_DEFAULT_CFG")

    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True, target="trtllm")

    assert report.exporter == "unified_hf"
