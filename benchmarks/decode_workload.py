"""The model of decode.py and how its tokens are timed; imports nothing of Octavo, so that peers use it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

PROMPT, TOKENS, BLOCK = 16, 32, 128


def model(dtype: torch.dtype, num_layers: int = 24) -> nn.Module:
    """A random Llama of 316 M parameters, 283 M of them in linear layers of its blocks; head and embedding are one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def prompt() -> Tensor:
    """One sample of random tokens."""
    return torch.randint(0, 32000, (1, PROMPT), generator=torch.Generator().manual_seed(0))


def milliseconds(target: Any) -> list[float]:
    """Return the wall time of each greedy token after the prompt and a first one, with a KV cache."""
    ids, times = prompt(), []
    with torch.inference_mode():
        output = target(ids, use_cache=True)
        for _ in range(TOKENS + 1):
            start = time.perf_counter()
            ids = output.logits[:, -1:].argmax(-1)
            output = target(ids, past_key_values=output.past_key_values, use_cache=True)
            times.append((time.perf_counter() - start) * 1000)
    return times[1:]


def is_measured(name: str, module: nn.Module) -> bool:
    """Return whether a layer is a linear one of a decoder block, whose weight is counted."""
    return isinstance(module, nn.Linear) and name != "lm_head"
