"""Tiny models to plan, real or without weights, and what a plan says of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo
from octavo.core.plan import Plan, TensorPlan

SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 128, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64} | {
        "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip
WITH_MAP = ("llama", "mistral", "qwen2", "qwen3")
WITHOUT_MAP = ("exaone4", "smollm3", "seed_oss")
Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_PROJ = "model.layers.1.mlp.down_proj"


def new_model(
    model_type: str = "llama", device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any
) -> nn.Module:
    """A causal language model with random weights, or without any on the meta device."""
    config = AutoConfig.for_model(model_type, **{**OWN_SIZES.get(model_type, SIZES), **changes})
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


@cache
def shared_model(model_type: str = "llama", device: str = "meta") -> nn.Module:
    """The same model for every test that only plans: planning changes nothing, which one test checks."""
    return new_model(model_type, device)


def tokens() -> Tensor:
    return torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def planned(config: str | Mapping[str, Any], model: nn.Module | None = None, **options: Any) -> Plan:
    return octavo.plan(model if model is not None else shared_model(), config, **options)


def tensor(plan: Plan, name: str) -> TensorPlan:
    (found,) = (tensor for tensor in plan.tensors if tensor.name == name)
    return found
