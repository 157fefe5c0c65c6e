"""Which entries of which checkpoint tensors make a rank's part of a Megatron-core tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Entries along one dim that lie together in a rank's tensor and in a checkpoint's.

    Attributes:
        part: Number of the checkpoint's tensor; None for padding, which no checkpoint has.
        start: First entry there.
        length: Number of entries.
    """

    part: int | None
    start: int
    length: int


def runs_of_rank(sizes: Sequence[int], groups: int, rank: int, ranks: int, padding: int = 0) -> list[Run]:
    """Return what lies one after the other in the tensor of `rank`.

    All ranks' tensors together are `groups` runs of equal length, in each of which lie the entries of every part in
    turn, and then the padding; each rank has an equal share of that.

    Args:
        sizes: Entries of each part, divisible by `groups`.
        groups: Number of groups.
        rank: Which rank.
        ranks: Number of ranks.
        padding: Entries behind all parts.
    """
    whole = [
        Run(part, group * (size // groups), size // groups)
        for group in range(groups)
        for part, size in enumerate(sizes)
    ]
    whole += [Run(None, 0, padding)] if padding else []
    length = sum(run.length for run in whole) // ranks
    return list(_between(whole, rank * length, (rank + 1) * length))


def _between(runs: Sequence[Run], start: int, stop: int) -> Iterator[Run]:
    """Yield what lies between two places of the runs, laid one after the other."""
    position = 0
    for run in runs:
        first, last = max(start, position), min(stop, position + run.length)
        if first < last:
            yield Run(run.part, run.start + first - position, last - first)
        position += run.length
