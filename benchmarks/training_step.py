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


def step_of(model: nn.Module, ids: Tensor) -> Callable[[], None]:
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
    times = [(workload.cpu_seconds(plain_step), workload.cpu_seconds(step)) for _ in range(repeats + 1)][1:]
    ratios = [plain / own for plain, own in times]
    plain_seconds, seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "speed": statistics.median(ratios),
        "speed_range": [min(ratios), max(ratios)],
        "cpu_seconds": seconds,
        "plain_cpu_seconds": plain_seconds,
    }
