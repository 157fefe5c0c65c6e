"""The 29 M parameter model and the data of the cost benchmarks; imports nothing of Octavo, so that peers use it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

SAMPLES, TOKENS, VOCABULARY = 16, 512, 8192


def model() -> nn.Module:
    """A random fp32 Llama: hidden 512, 8 layers, 8 heads (4 for keys and values), feed-forward 1376."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=TOKENS,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def data() -> list[Tensor]:
    """16 samples of 512 random tokens, one per batch."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (1, TOKENS), generator=generator) for _ in range(SAMPLES)]


@torch.no_grad()
def forward_loop(target: nn.Module) -> None:
    """Run the data through a model."""
    for ids in data():
        target(ids)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call, of this process and all its threads."""
    start = time.process_time()
    work()
    return time.process_time() - start
