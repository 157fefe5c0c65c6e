"""Choosing the candidate with the least error over all rows of a weight, from as few rows as leave no doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_LOUDEST = 32  # rows that are always compared: a few could outweigh what others foretell
_FIRST, _MOST = 96, 256  # rows drawn at first, and at most at once
_STANDARD_ERRORS = 5.0


class RaceResult(NamedTuple):
    """What a race found.

    Attributes:
        best: Index of the candidate with the least error (ties: the first).
        errors: Of each candidate, the sum over all rows; estimated from those compared where they were not all.
    """

    best: int
    errors: list[float]


def race(num_candidates: int, magnitudes: Tensor, row_errors: Callable[[int, Tensor], Tensor]) -> RaceResult:
    """Return the candidate with the least sum of errors over rows.

    Candidates are compared on the loudest rows and on rows drawn from the others, more and more. One is dropped when
    it is behind the best by five standard errors of what the rows to come may make good: rows are alike in
    what candidates do to them, so that the differences of a few hundred tell those that are far apart. Two that
    are close run to the end, where sums are exact. The rows drawn are the same in every run.

    Args:
        num_candidates: How many there are, 1 or more.
        magnitudes: [rows], about how much each row counts.
        row_errors: Returns the errors of a candidate, [n], on rows, int64 [n].
    """
    order = _order(magnitudes)
    seen: list[Tensor] = [order.new_empty(0, dtype=torch.float64)] * num_candidates
    running, done = list(range(num_candidates)), 0
    while done < len(order) and (done == 0 or len(running) > 1):
        count = _LOUDEST + _FIRST if done == 0 else min(done, _MOST)
        rows = order[done : done + count]
        for candidate in running:
            seen[candidate] = torch.cat([seen[candidate], row_errors(candidate, rows).double()])
        done += len(rows)
        running = _still_running(running, seen, len(order))
    errors = [float(_foretold(errors, len(order))) for errors in seen]
    return RaceResult(min(running, key=errors.__getitem__), errors)


def _order(magnitudes: Tensor) -> Tensor:
    """Return the indices of the loudest rows, then those of the others in an order drawn once for all."""
    loudest = magnitudes.argsort(descending=True, stable=True)
    shuffled = torch.randperm(max(len(loudest) - _LOUDEST, 0), generator=torch.Generator().manual_seed(0))
    return torch.cat([loudest[:_LOUDEST], loudest[_LOUDEST:][shuffled.to(loudest.device)]])


def _foretold(errors: Tensor, num_rows: int) -> Tensor:
    """Return the sum over all rows, [], where the rows to come are like those drawn so far."""
    unseen = num_rows - len(errors)
    return errors.sum() if unseen == 0 else errors.sum() + unseen * errors[_LOUDEST:].mean()


def _still_running(running: list[int], seen: list[Tensor], num_rows: int) -> list[int]:
    """Return the candidates that may yet turn out best."""
    best = min(running, key=lambda candidate: float(_foretold(seen[candidate], num_rows)))
    unseen = num_rows - len(seen[best])
    if unseen == 0:
        return running
    kept = []
    for candidate in running:
        behind = seen[candidate] - seen[best]
        drawn = behind[_LOUDEST:]
        # Of a sum over the rows to come: their mean differs from that of all rows, and so does that of the rows drawn.
        doubt = drawn.std() * (unseen**2 / len(drawn) + unseen) ** 0.5
        if not _foretold(behind, num_rows) > _STANDARD_ERRORS * doubt:  # what is not a number decides nothing
            kept.append(candidate)
    return kept
