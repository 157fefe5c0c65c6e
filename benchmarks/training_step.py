"""The training step of qat_step.py; imports nothing of Octavo, so that peers use it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import workload
from torch import Tensor, nn


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


Loss = Callable[[nn.Module, Tensor], Tensor]


def step_of(model: nn.Module, ids: Tensor, loss: Loss = loss) -> Callable[[], None]:
    """Return a step of training: forward, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, ids).backward()
        optimizer.step()

    return step


def speeds(quantized: nn.Module, repeats: int, samples: int) -> dict[str, Any]:
    """Return how fast a quantized model's step is beside the plain one's, both in turn."""
    ids = torch.cat(workload.data()[:samples])
    plain_step, step = step_of(workload.model(), ids), step_of(quantized, ids)
    times = in_turn(plain_step, step, repeats)
    ratios = [plain / own for plain, own in times]
    plain_seconds, seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "speed": statistics.median(ratios),
        "speed_range": [min(ratios), max(ratios)],
        "cpu_seconds": seconds,
        "plain_cpu_seconds": plain_seconds,
    }


def in_turn(one: Callable[[], None], other: Callable[[], None], repeats: int) -> list[tuple[float, float]]:
    """Return the CPU seconds of two steps that run in turn, without those of a first one of each."""
    return [(workload.cpu_seconds(one), workload.cpu_seconds(other)) for _ in range(repeats + 1)][1:]
