"""Tiny random transformers models whose widths fit every block length, and data for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

VOCABULARY = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def tiny_llama(dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A Llama of two blocks: hidden 128, feed-forward 256, four heads of 32, two for keys and values."""
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, **changes}), dtype=dtype)
    return model.eval()


def token_batches(num_batches: int = 2) -> list[Tensor]:
    """Random token ids [2, 24]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (2, 24), generator=generator) for _ in range(num_batches)]
