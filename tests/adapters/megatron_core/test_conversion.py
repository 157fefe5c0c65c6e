"""Hugging Face checkpoints inside Megatron-core on four real ranks, beside transformers in this process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import octavo
from helpers.launcher import run_on_ranks
from helpers.megatron_checkpoints import FORMATS, MODELS, TOKENS, save, tensors_of

PLAIN = [
    ["llama", "tp2pp2"],
    ["qwen2", "pp2"],
    ["qwen3", "tp4"],
    ["mixtral", "ep2"],
    ["gpt2", "tp2"],
]
QUANTIZED = [
    ["llama", "tp2pp2", "fp8_kv", "unified_hf"],
    ["llama", "tp2", "nvfp4", "unified_hf"],
    ["qwen3", "tp2", "int8_rows", "compressed_tensors"],
    ["mixtral", "ep2", "fp8", "unified_hf"],
    ["qwen3_moe", "tp2pp2", "nvfp4", "unified_hf"],
    ["llama", "tp2", "fp8", "tensorrt_llm"],
]
PERPLEXITY = ["tp2", "fp8"]
pytestmark = pytest.mark.launcher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Path:
    folder = tmp_path_factory.mktemp("conversion")
    for kind in MODELS:
        save(kind, folder / kind)
    save("llama", folder / "wide", intermediate_size=192)
    save("llama", folder / "three_heads", num_attention_heads=3, num_key_value_heads=3, hidden_size=48)
    save("mixtral", folder / "six_experts", num_local_experts=6)
    tokenizer = octavo.plugins().load_tokenizer(stories, False)
    texts = octavo.text_batches(tokenizer, stories.parent / "test.jsonl", num_samples=64, batch_size=1)
    stream = torch.cat([batch["input_ids"][0] for batch in texts])
    save_file({"tokens": stream[: 8 * 128].view(8, 128).contiguous()}, folder / "stories.st")
    return folder


@pytest.fixture(scope="module")
def result(folder: Path, stories: Path) -> Any:
    tasks = {
        "plain": PLAIN,
        "quantized": QUANTIZED,
        "perplexity": [[str(stories), *PERPLEXITY]],
        "refusals": True,
    }
    return run_on_ranks(4, "megatron_huggingface", folder, json.dumps(tasks))


def test_logits_are_those_of_transformers(result: Any) -> None:
    assert len(result["errors"]) == len(PLAIN)
    assert max(result["errors"].values()) <= 1e-5, result["errors"]


def test_plain_checkpoints_come_back_byte_for_byte(result: Any, folder: Path) -> None:
    for kind, layout in PLAIN:
        _check_equal(tensors_of(folder / f"{kind}-{layout}"), tensors_of(folder / kind))
        written = json.loads((folder / f"{kind}-{layout}" / "config.json").read_text())
        read = json.loads((folder / kind / "config.json").read_text())
        assert written == read


@pytest.mark.parametrize(("kind", "layout", "name", "exporter"), QUANTIZED)
def test_quantized_checkpoints_are_those_of_transformers(
    result: Any, folder: Path, tmp_path: Path, kind: str, layout: str, name: str, exporter: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32).eval()
    octavo.quantize(model, FORMATS[name], [TOKENS], quiet=True)
    octavo.plugins().exporter(exporter).export(model, tmp_path / "expected", quiet=True)
    pattern = "rank*.safetensors" if exporter == "tensorrt_llm" else "model*.safetensors"
    expected = tensors_of(tmp_path / "expected", pattern)

    found = tensors_of(folder / f"{kind}-{layout}-{name}-{exporter}", pattern)

    inputs = {
        key
        for key in expected
        if key.endswith(
            ("input_scale", "activation_scaling_factor", "k_scale", "v_scale", "kv_cache_scaling_factor")
        )
    }
    assert inputs or name == "int8_rows"
    for key in inputs:
        torch.testing.assert_close(found.pop(key), expected.pop(key), rtol=2**-7, atol=0)
    _check_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "layout", "name", "near"),
    [
        ("llama", "tp2pp2", "fp8_kv", 0.01),
        ("llama", "tp2", "nvfp4", 0.01),
        (
            "mixtral",
            "ep2",
            "fp8",
            0.05,
        ),  # inside Megatron-core each expert rounds its input by a scale of its own
    ],
)
def test_quantized_models_compute_what_those_of_transformers_do(
    result: Any, folder: Path, kind: str, layout: str, name: str, near: float
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32).eval()
    octavo.quantize(model, FORMATS[name], [TOKENS], quiet=True)
    if name == "nvfp4":  # a fused layer has the second-level scale that checkpoints share among its parts
        octavo.finalize(model, "unified_hf")
    with torch.no_grad():
        expected = model(TOKENS).logits

    found = load_file(f"{folder / kind}-{layout}-{name}-unified_hf.st")["logits"][..., : expected.shape[-1]]

    assert (found - expected).norm() <= near * expected.norm()


def test_the_metadata_is_that_of_transformers(result: Any, folder: Path, tmp_path: Path) -> None:
    kind, layout, name, exporter = QUANTIZED[0]
    model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32).eval()
    octavo.quantize(model, FORMATS[name], [TOKENS], quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "expected", max_shard_bytes=100_000, quiet=True)
    for file in (
        "config.json",
        "hf_quant_config.json",
        "generation_config.json",
        "model.safetensors.index.json",
    ):
        ours = (folder / f"{kind}-{layout}-{name}-{exporter}" / file).read_bytes()
        assert ours == (tmp_path / "expected" / file).read_bytes(), file


def test_the_perplexity_is_that_of_transformers(result: Any, folder: Path, stories: Path) -> None:
    tokens = load_file(folder / "stories.st")["tokens"]
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    plain = octavo.perplexity(model, [tokens])
    octavo.quantize(model, FORMATS[PERPLEXITY[1]], [tokens], quiet=True)

    expected = octavo.perplexity(model, [tokens])

    assert result["perplexity"][0] == pytest.approx(expected, rel=1e-3)
    assert math.isfinite(expected)
    assert expected != pytest.approx(plain, rel=1e-4), "nothing was rounded"


def test_every_rank_says_why_it_refuses(result: Any) -> None:
    first, *others = result["refusals"]
    assert "full is not empty" in first["full"]
    for said in others:
        assert said["full"].startswith("rank 0 could not write the checkpoint: ")
        assert "full is not empty" in said["full"]
    assert (
        "has 128 entries along dim 0 on each of 2 ranks, and the Hugging Face model 384 in all"
        in first["other"]
    )
    for said in result["refusals"]:
        assert "linear_fc1.weight has shape [128, 64] on this rank" in said["load"]
        assert "wide has [192, 64] for it" in said["load"]
        assert "core_attention.q_bmm_quantizer has a rotation" in said["rotated"]
        assert "num_attention_heads 3 is not divisible by 4 (tensor parallel)" in said["narrow"]
        assert "the number of experts 6 is not divisible by 4 (expert parallel)" in said["experts"]


def _check_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [name for name, tensor in expected.items() if not _same(found[name], tensor)]
    assert differing == []


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (found, expected)]
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(*bits)
