"""The Trainer's own data, for calibration and for an evaluation beside its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.graph.evaluating import evaluating
from octavo.core.ranks.world import num_ranks, sum_of_all


def first_batches(dataloader: Any, number: int, batch_size: int) -> list[Mapping[str, Any]]:
    """Return the first batches of a dataloader's data set, in its own order, whatever the sampler's is.

    They are the same on every rank, and drawing them moves no random number generator of the training.
    """
    with torch.random.fork_rng(devices=[]):
        samples = list(islice(iter(dataloader.dataset), number * batch_size))
        groups = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        return [dataloader.collate_fn(group) for group in groups]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the mean loss over the samples of all ranks, as the Trainer's evaluation does; None without labels."""
    device = next(model.parameters()).device
    total = torch.zeros(2, dtype=torch.float64)
    with evaluating(model):
        for batch in batches:
            moved = {
                key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()
            }
            loss = model(**moved).get("loss")
            if loss is None:
                return None
            size = next(len(value) for value in moved.values() if isinstance(value, Tensor))
            total += torch.tensor([float(loss) * size, size], dtype=torch.float64)
    if num_ranks() > 1:
        total = sum_of_all(total.to(device))
    return float(total[0] / total[1])
