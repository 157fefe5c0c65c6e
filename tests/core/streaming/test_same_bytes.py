"""A streamed checkpoint is, byte for byte, the one that is written from memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import octavo
from helpers.adapters_models import tiny_model
from helpers.streaming import hashes, in_memory, small_data, small_source, stream
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import CalibrationError, UnsupportedError
from octavo.core.model.shard_reader import ShardReader
from octavo.core.report.files import read_report

PRESETS = (
    "FP8_DEFAULT_CFG", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG", "NVFP4_DEFAULT_CFG",
    "NVFP4_SVDQUANT_DEFAULT_CFG", "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG", "MXFP4_DEFAULT_CFG",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose widths every block length divides."""
    folder = tmp_path_factory.mktemp("source")
    tiny_llama(torch.bfloat16).save_pretrained(folder, max_shard_size="300KB")
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(source: Path, tmp_path: Path, preset: str) -> None:
    config = octavo.merge_configs(preset, "FP8_KV_CFG")
    expected = in_memory(source, tmp_path / "memory", config, token_batches())
    stream(source, tmp_path / "stream", config, data=token_batches())
    assert hashes(tmp_path / "stream") == hashes(expected)
    rows, others = (read_report(folder)["weights"] for folder in (tmp_path / "stream", expected))
    assert rows == others


@pytest.mark.parametrize("target", ["vllm", "transformers"])
def test_targets(source: Path, tmp_path: Path, target: str) -> None:
    expected = in_memory(source, tmp_path / "memory", "INT8_DEFAULT_CFG" if target == "vllm" else "FP8_DEFAULT_CFG",
                         token_batches(), target)  # fmt: skip
    config = "INT8_DEFAULT_CFG" if target == "vllm" else "FP8_DEFAULT_CFG"
    stream(source, tmp_path / "stream", config, data=token_batches(), target=target)
    assert hashes(tmp_path / "stream") == hashes(expected)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "mixtral", "qwen3_moe"])
def test_families(tmp_path: Path, model_type: str) -> None:
    tiny_model(model_type).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    data = [torch.arange(2, 14).reshape(1, 12), torch.arange(14, 26).reshape(1, 12)]
    expected = in_memory(tmp_path / "source", tmp_path / "memory", data=data)
    stream(tmp_path / "source", tmp_path / "stream", data=data)
    assert hashes(tmp_path / "stream") == hashes(expected)


@pytest.mark.parametrize("budget", [0, "1GB"])
def test_tied_embeddings_and_activations_on_disk(tmp_path: Path, budget: int | str) -> None:
    source = small_source(tmp_path / "source", tie_word_embeddings=True)
    expected = in_memory(source, tmp_path / "memory")
    stream(source, tmp_path / "stream", activation_budget=budget)
    assert hashes(tmp_path / "stream") == hashes(expected)


def test_layers_outside_the_blocks(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    config = octavo.merge_configs(
        "FP8_DEFAULT_CFG", {"quant_cfg": [{"quantizer_name": "*lm_head*", "enable": True}]}
    )
    config["quant_cfg"].append(
        {"quantizer_name": "*lm_head.*_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}, "enable": True}
    )
    config["quant_cfg"].append({"quantizer_name": "*lm_head.output_quantizer", "enable": False})
    expected = in_memory(source, tmp_path / "memory", config)
    stream(source, tmp_path / "stream", config)
    assert hashes(tmp_path / "stream") == hashes(expected)
    assert "lm_head.input_scale" in ShardReader(expected).names()


def test_no_data_where_none_is_needed(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    expected = in_memory(source, tmp_path / "memory", "INT8_WEIGHT_ONLY_CFG")
    stream(source, tmp_path / "stream", "INT8_WEIGHT_ONLY_CFG", data=None)
    assert hashes(tmp_path / "stream") == hashes(expected)
    with pytest.raises(
        CalibrationError,
        match=r"14 quantizers need calibration data .* model.layers.0.self_attn.q_proj.input",
    ):
        stream(source, tmp_path / "other", "FP8_DEFAULT_CFG", data=None)


def test_padded_batches(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :5] = 0
    data = [{"input_ids": tokens, "attention_mask": mask} for tokens in small_data()]
    expected = in_memory(source, tmp_path / "memory", data=data)
    stream(source, tmp_path / "stream", data=data)
    assert hashes(tmp_path / "stream") == hashes(expected)


def test_tensors_that_the_model_does_not_know_are_copied_and_named(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source", max_shard_size="1GB")
    file = source / "model.safetensors"
    extra = {"mtp.proj.weight": torch.randn(8, 4), "mtp.norm.weight": torch.randn(3)}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    report = stream(source, tmp_path / "stream")
    written = ShardReader(tmp_path / "stream")
    assert all(torch.equal(written.tensor(name), tensor) for name, tensor in extra.items())
    assert any("2 tensors of the source" in text and "mtp.proj.weight" in text for text in report.warnings)


@pytest.mark.parametrize("preset", ["OCTAVO_INT8_CFG", "OCTAVO_INT4_CFG"])
def test_algorithms_that_need_more_than_a_block(tmp_path: Path, preset: str) -> None:
    source = small_source(tmp_path / "source")
    with pytest.raises(UnsupportedError, match=r"algorithm '(smooth|compensate)' .* quantize in memory"):
        stream(source, tmp_path / "stream", preset)
    assert not (tmp_path / "stream.partial").exists()
