"""The weights of one group, rounded so that they make good what earlier layers lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.group_statistics import GroupStatistics
from octavo.core.calibration.solvers.compensation import compensated
from octavo.core.calibration.solvers.descent import unrounded_optimum
from octavo.core.calibration.solvers.grid import Grid, static
from octavo.core.calibration.solvers.rounding import best_rounding, scales_are_of_rows
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.formats import compute_amax

if TYPE_CHECKING:
    from octavo.core.calibration.compensate import Compensate

State = dict[str, Tensor]


@torch.no_grad()
def round_group(
    calibration: Calibration,
    problems: Sequence[WeightProblem],
    statistics: GroupStatistics,
    options: Compensate,
) -> None:
    """Round weights that read the same tensor, and report each; rounding to nearest stays where it is better.

    Raises:
        CalibrationError: XᵀX is not positive definite with any damping.
    """
    if statistics.gram is None or statistics.num_tokens == 0:
        for problem in problems:
            calibration.report(problem, options.method, chosen="max", reason="no token reached it")
        return
    for joined in _joinable(problems):
        for solved in _solved(joined, statistics, statistics.gram, options):
            _set_better(calibration, solved, statistics, options.method)


def _joinable(problems: Sequence[WeightProblem]) -> Iterator[list[WeightProblem]]:
    """Yield weights that can be solved as one: same format and second-level scale, and scales of single rows."""
    joined: dict[object, list[WeightProblem]] = {}
    for problem in problems:
        spec, second = static(problem.spec), problem.state().get("global_amax")
        key: object = (spec, None if second is None else float(second))
        if problem.index is not None or not scales_are_of_rows(spec):
            key = problem.name
        joined.setdefault(key, []).append(problem)
    yield from joined.values()


@dataclass(frozen=True, eq=False)
class _Solved:
    """A weight's rounded values and their state, and what they would best be, were they not rounded."""

    problem: WeightProblem
    rounded: Tensor
    state: State
    unrounded: Tensor


def _solved(
    problems: list[WeightProblem], statistics: GroupStatistics, gram: Tensor, options: Compensate
) -> Iterator[_Solved]:
    weights = [problem.weight() for problem in problems]
    target = weight = torch.cat(weights)
    missing = statistics.missing(weight) if problems[0].index is None else None
    if missing is not None:
        share = 1.0 if problems[0].inputs is None else options.share_of_rounded_inputs
        target = compensated(weight, gram, missing, damping=options.damping, share=share)
    spec = static(problems[0].spec)
    state = {**problems[0].state(), "amax": compute_amax(target, spec)}
    rounded, state = best_rounding(target, gram, state, spec, damping=options.damping, sweeps=options.sweeps)
    damped = gram.clone()
    damped.diagonal().add_(options.damping * gram.diagonal().mean())
    unrounded = unrounded_optimum(rounded, target, damped)
    if len(problems) == 1:
        yield _Solved(problems[0], rounded, state, unrounded)
        return
    rows = [len(part) for part in weights]
    split = [tensor.split_with_sizes(rows) for tensor in (rounded, state["amax"], unrounded)]
    for problem, part, amax, before in zip(problems, *split, strict=True):
        yield _Solved(problem, part, {**state, "amax": amax}, before)


def _set_better(calibration: Calibration, solved: _Solved, statistics: GroupStatistics, method: str) -> None:
    problem, rounded, state = solved.problem, solved.rounded, solved.state
    weight, nearest_state = problem.weight(), problem.state()
    grid = Grid.of(nearest_state, static(problem.spec), (weight.shape[0], weight.shape[1]))
    nearest = grid.round(weight)
    error, error_of_nearest = (statistics.held_error(q, weight) for q in (rounded, nearest))
    is_worse = not bool(error <= error_of_nearest)  # also where it is NaN
    chosen = nearest if is_worse else rounded
    errors = calibration.report_errors(problem, weight, chosen)
    problem.set_state(nearest_state if is_worse else state)
    calibration.set_weight(problem, chosen)
    if not is_worse:
        calibration.unrounded[problem.name] = solved.unrounded
    calibration.report(
        problem,
        method,
        chosen="round to nearest" if is_worse else method,
        tokens=statistics.num_tokens,
        held_error=float(error),
        held_error_of_nearest=float(error_of_nearest),
        **errors,
        **({"fallback": "rounded to nearest: the result was worse on held tokens"} if is_worse else {}),
    )
