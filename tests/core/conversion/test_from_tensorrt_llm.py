"""TensorRT-LLM checkpoints of several ranks under Hugging Face's names again, with the config that the user gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import octavo
from helpers.conversions import different, values_of
from helpers.exporters_models import json_of, tensors_of, with_json
from helpers.reference import folder
from helpers.tensorrt_llm_models import DECODER, quantized_llama, tiny
from helpers.tensorrt_llm_reference import PRESETS, reference_folder
from helpers.tiny import token_batches
from helpers.trtllm_checkpoints import same
from octavo.core.errors import CheckpointError, ConfigError

FOUR_RANKS = {"inference_tensor_parallel": 2, "inference_pipeline_parallel": 2}


def written(model: nn.Module, directory: Path, **ranks: int) -> Path:
    """Write a model for four ranks, and its framework's config beside; return the checkpoint."""
    octavo.export_tensorrt_llm_checkpoint(
        model, export_dir=directory / "trtllm", quiet=True, **(ranks or FOUR_RANKS)
    )
    config: Any = model.config
    config.save_pretrained(directory / "hf")
    return directory / "trtllm"


def convert(source: Path, out: Path, dialect: str = "unified_hf", **options: Any) -> octavo.ConversionReport:
    return octavo.convert_checkpoint(source, out, dialect, quiet=True, **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_there_and_back_is_byte_for_byte_what_it_was(shared: Path, tmp_path: Path, preset: str) -> None:
    source, unified = reference_folder(shared, preset, "tp2pp2"), tmp_path / "unified"

    there = convert(source, unified, config=folder(shared, "dense") / "base")
    back = convert(unified, tmp_path / "back", "tensorrt_llm", tp=2, pp=2)

    assert (there.source_dialect, there.changes, back.changes) == ("tensorrt_llm", (), ())
    for rank in range(4):
        expected = load_file(source / f"rank{rank}.safetensors")
        found = load_file(tmp_path / "back" / f"rank{rank}.safetensors")
        assert found.keys() == expected.keys()
        assert [name for name in expected if not same(found[name], expected[name])] == []
    first, last = (json_of(directory / "config.json") for directory in (source, tmp_path / "back"))
    assert {**first, "producer": None} == {**last, "producer": None}


@pytest.mark.parametrize("preset", ["INT8_WEIGHT_ONLY_CFG", "INT8_SMOOTHQUANT_CFG", "NVFP4_DEFAULT_CFG"])
def test_it_is_the_peers_unified_checkpoint(shared: Path, tmp_path: Path, preset: str) -> None:
    """Of the formats whose numbers both dialects of ModelOpt agree about."""
    base = folder(shared, "dense")

    convert(reference_folder(shared, preset, "tp2pp2"), tmp_path / "out", config=base / "base")

    expected = load_file(base / preset / "model.safetensors")
    found = tensors_of(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name], expected[name])] == []


@pytest.mark.parametrize(
    "preset", ["FP8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG", "NVFP4_DEFAULT_CFG", "W4A8_AWQ_BETA_CFG"]
)
def test_the_model_computes_what_it_did(preset: str, tmp_path: Path) -> None:
    model = quantized_llama(preset)
    source = written(model, tmp_path, inference_pipeline_parallel=2)

    report = convert(source, tmp_path / "out", config=tmp_path / "hf")

    assert report.changes == ()
    served, ids = octavo.load_quantized(tmp_path / "out"), torch.arange(3, 20)[None]
    with octavo.finalized(model, "tensorrt_llm"), torch.no_grad():
        assert torch.equal(served(ids).logits, model(ids).logits)


def test_compressed_tensors(tmp_path: Path) -> None:
    """Which hold the inverse of FP4's scales: the last bit of some changes, and no code."""
    source = written(quantized_llama("NVFP4_DEFAULT_CFG"), tmp_path)

    report = convert(source, tmp_path / "out", "compressed_tensors", config=tmp_path / "hf", lossy=True)

    assert report.share_of_codes == 0
    assert {change.scales for change in report.changes} == {2.0**-23}
    before, after = values_of(source), values_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_experts(tmp_path: Path) -> None:
    config = {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = octavo.quantize(tiny("mixtral", **config), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)
    source = written(model, tmp_path, inference_tensor_parallel=4, inference_expert_parallel=2)

    report = convert(source, tmp_path / "out", config=tmp_path / "hf")

    assert report.changes == ()
    before, after = values_of(source), values_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    served, ids = octavo.load_quantized(tmp_path / "out"), torch.arange(3, 20)[None]
    with octavo.finalized(model, "tensorrt_llm"), torch.no_grad():
        assert torch.equal(served(ids).logits, model(ids).logits)


def test_for_an_engine(tmp_path: Path) -> None:
    source = written(quantized_llama("FP8_DEFAULT_CFG"), tmp_path)

    report = octavo.convert_checkpoint(
        source, tmp_path / "out", target="vllm", config=tmp_path / "hf", quiet=True
    )

    assert (report.dialect, report.changes) == ("unified_hf", ())  # q, k and v have one scale already
    before, after = values_of(source), values_of(tmp_path / "out")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_rows_that_pad_the_vocabulary_go(tmp_path: Path) -> None:
    int4 = octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)
    model = quantized_llama(int4, vocab_size=70)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "direct", quiet=True)
    source = written(model, tmp_path)
    assert json_of(source / "config.json")["vocab_size"] == 128

    convert(source, tmp_path / "out", config=tmp_path / "hf")

    assert tensors_of(tmp_path / "out")["lm_head.weight"].shape == (70, 128)
    assert different(tmp_path / "out", tmp_path / "direct") == []


def test_files_of_the_original_model_go_along(tmp_path: Path) -> None:
    source = written(quantized_llama("INT8_WEIGHT_ONLY_CFG"), tmp_path)
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    (tmp_path / "hf" / "model.safetensors").write_text("weights")
    with_json(tmp_path / "hf" / "config.json", lambda config: config.update(torch_dtype="float32"))

    convert(source, tmp_path / "out", config=tmp_path / "hf")

    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != b"weights"
    config = json_of(tmp_path / "out" / "config.json")
    assert (config["dtype"], config["model_type"], "torch_dtype" in config) == ("bfloat16", "llama", False)


def test_the_config_is_asked_for(tmp_path: Path) -> None:
    source = written(quantized_llama("INT8_WEIGHT_ONLY_CFG"), tmp_path)
    out = tmp_path / "out"

    message = (
        r"trtllm/config\.json is not that of the model's framework.*give the folder .*\(config, --config\)"
    )
    with pytest.raises(ConfigError, match=message):
        convert(source, out)
    message = (
        f"{re.escape(str(source))} must hold the config.json of the model's framework, which names its model_"
    )
    with pytest.raises(ConfigError, match=message):
        convert(source, out, config=source)
    message = "nowhere must hold the config.json of the model's framework"
    with pytest.raises(ConfigError, match=message):
        convert(source, out, config=tmp_path / "nowhere")
    convert(source, out, config=tmp_path / "hf")
    message = (
        r"out has the config and the tokenizer of its model, and .*hf is given for them; leave config out"
    )
    with pytest.raises(ConfigError, match=message):
        convert(out, tmp_path / "again", "compressed_tensors", config=tmp_path / "hf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"intermediate_size": 512},
            r"mlp\.\w+_proj\.weight has shape \[.*256.*\] here and \[.*512.*\] there",
        ),
        ({"vocab_size": 32}, r"has shape \[64, 128\] here and \[32, 128\] there"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ has no place in it"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.input_layernorm\.weight, .*9 in all.* are missing"),
    ],
)
def test_the_config_of_another_model(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = written(quantized_llama("INT8_WEIGHT_ONLY_CFG"), tmp_path)
    with_json(tmp_path / "hf" / "config.json", lambda config: config.update(change))

    with pytest.raises(CheckpointError, match=r"trtllm is not a checkpoint of the model .*hf: .*" + message):
        convert(source, tmp_path / "out", config=tmp_path / "hf")
    assert not (tmp_path / "out").exists()
