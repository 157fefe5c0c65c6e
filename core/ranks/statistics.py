"""What ranks saw of their parts of the data, put together: afterwards each has what one process would have seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist
from torch import nn

from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.calibration.statistics.held_tokens import HeldTokens
from octavo.core.calibration.statistics.input_statistics import SUMS
from octavo.core.errors import CalibrationError, listed
from octavo.core.modules import tensor_quantizers
from octavo.core.ranks.world import largest_of_all, num_ranks, sum_of_all

if TYPE_CHECKING:
    from octavo.core.calibration.statistics.input_statistics import InputStatistics


def merge_inputs(collectors: Iterable[StatisticsCollector]) -> None:
    """Give every rank's collectors the sums and maxima of all, and the held tokens of all, in the order of ranks.

    Raises:
        CalibrationError: on every rank, where the data of some rank never reached an input.
    """
    collectors = list(collectors)
    if num_ranks() == 1 or not collectors:
        return
    device = next((c.statistics.amax.device for c in collectors if c.statistics is not None), None)
    missing = largest_of_all(torch.tensor([float(c.statistics is None) for c in collectors], device=device))
    unseen = [c.name for c, is_missing in zip(collectors, missing.tolist(), strict=True) if is_missing]
    if unseen:
        raise CalibrationError(
            f"the data of some ranks never reached {len(unseen)} inputs: {listed(unseen)}; give every rank data that "
            "reaches them"
        )
    for collector in collectors:
        if collector.statistics is not None:
            _merge_input(collector.statistics)


@torch.no_grad()
def share_results(model: nn.Module, with_weights: bool) -> None:
    """Give every rank what calibration made of rank 0's model, which is what it made of theirs up to rounding.

    Args:
        model: The model.
        with_weights: Weights changed, too; none is divided then.
    """
    if num_ranks() == 1:
        return
    for _, quantizer in tensor_quantizers(model):
        for buffer in quantizer.buffers(recurse=False):
            dist.broadcast(buffer, 0)
    for parameter in model.parameters() if with_weights else ():
        dist.broadcast(parameter.data, 0)


def _merge_input(statistics: InputStatistics) -> None:
    counts = torch.tensor([statistics.num_tokens, statistics.num_batches], device=statistics.amax.device)
    statistics.num_tokens, statistics.num_batches = sum_of_all(counts).tolist()
    for name in SUMS:
        merge = largest_of_all if name == "amax" else sum_of_all
        setattr(statistics, name, merge(getattr(statistics, name).clone()))
    statistics.block_amax_counts = sum_of_all(statistics.block_amax_counts.clone())
    if statistics.needs.gram:
        statistics.set_factors(sum_of_all(statistics.gram().clone()), [])
    _merge_held(statistics.held, statistics.num_channels, statistics.amax.device)


def _merge_held(held: HeldTokens, num_channels: int, device: torch.device) -> None:
    """Make `held` what rank 0's is, with those of the other ranks merged in one after the other."""
    if held.capacity == 0:
        return
    tokens = held.tokens()
    facts = [torch.zeros(3, dtype=torch.int64, device=device) for _ in range(num_ranks())]
    dist.all_gather(facts, torch.tensor([len(tokens), held.stride, held.seen], device=device))
    longest = max(int(fact[0]) for fact in facts)
    padded = torch.zeros(longest, num_channels, dtype=tokens.dtype, device=device)
    padded[: len(tokens)] = tokens
    parts = [torch.zeros_like(padded) for _ in facts]
    dist.all_gather(parts, padded)
    whole = HeldTokens(held.capacity)
    for part, fact in zip(parts, facts, strict=True):
        length, stride, seen = fact.tolist()
        one = HeldTokens(held.capacity)
        one.restore(part[:length], stride, seen)
        whole.merge(one)
    held.become(whole)
