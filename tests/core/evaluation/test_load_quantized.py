"""A checkpoint read back computes, bit for bit, what the finalized fake-quantized model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

import octavo
from helpers.calibration_snapshot import same_bits
from helpers.evaluation_checkpoints import quantized
from helpers.tiny import tiny_llama, token_batches

IDS = token_batches(2)[1]
MASK = (torch.arange(24)[None] < torch.tensor([[24], [7]])).long()
PRESETS = [
    "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "NVFP4_DEFAULT_CFG+NVFP4_KV_CFG",
    "INT8_DEFAULT_CFG",
    "MXFP4_DEFAULT_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "W4A8_NVFP4_FP8_CFG",
]
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip


def other_family(config: type) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = AutoModelForCausalLM.from_config(config(**SIZES), dtype=torch.bfloat16)
        return made.eval()

    return make


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: tiny_llama(torch.bfloat16),
    "llama in fp32, tied": lambda: tiny_llama(tie_word_embeddings=True),
    "llama with biases": lambda: tiny_llama(torch.bfloat16, attention_bias=True, mlp_bias=True),
    "mistral": other_family(MistralConfig),
    "qwen2": other_family(Qwen2Config),
    "qwen3": other_family(Qwen3Config),
}
CASES = [("llama", preset) for preset in PRESETS] + [(name, PRESETS[0]) for name in MODELS if name != "llama"]


@torch.no_grad()
def logits(model: nn.Module) -> list[Tensor]:
    """Logits of whole and of padded samples."""
    return [model(IDS).logits, model(input_ids=IDS * MASK, attention_mask=MASK).logits]


@pytest.mark.parametrize(("kind", "presets"), CASES)
def test_logits_equal_the_finalized_models(kind: str, presets: str, tmp_path: Path) -> None:
    model = quantized(MODELS[kind](), presets)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    with octavo.finalized(model, "unified_hf"):
        expected = logits(model)

    found = logits(octavo.load_quantized(tmp_path / "out"))

    assert all(same_bits(one, other) for one, other in zip(found, expected, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(found, logits(MODELS[kind]()), strict=True))


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    model = quantized(MODELS["llama"](), PRESETS[0])
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "whole", quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "shards", max_shard_bytes=50_000, quiet=True)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3

    whole, sharded = (logits(octavo.load_quantized(tmp_path / name)) for name in ("whole", "shards"))

    assert all(same_bits(one, other) for one, other in zip(sharded, whole, strict=True))
