"""Weights that read the same tensor, solved by GPTQ as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octavo.core.calibration.solvers.damping import feedback
from octavo.core.calibration.solvers.descent import descend
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.gptq_ranges import gptq_ranges
from octavo.core.calibration.solvers.grid import Grid, static
from octavo.core.calibration.solvers.ranges import amax_candidates, search_amax
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.formats import PerBlock

State = dict[str, Tensor]


@dataclass(frozen=True)
class GptqOptions:
    """Options as in `Gptq`."""

    damping: float
    block: int
    act_order: bool
    scales: Literal["max", "search"]
    sweeps: int


@dataclass(frozen=True, eq=False)
class GptqSolutions:
    """What was found for the weights of a group.

    Attributes:
        weights: fp32 [out, in] each, values of the grid of its state.
        states: The states of `static(spec)`.
        damping: What was added to the diagonal, as a fraction of its mean.
        num_dead: Columns whose input was always zero.
    """

    weights: list[Tensor]
    states: list[State]
    damping: float
    num_dead: int


class GptqGroup:
    """Weights of one format that read the same tensor.

    Args:
        problems: The weights; where scales are searched, their second-level scales are equal.

    Attributes:
        gram: XᵀX of what they read, fp32 [in, in].
    """

    def __init__(self, problems: Sequence[WeightProblem]) -> None:
        self._problems = problems
        self.gram = problems[0].gram()
        self._weights = [problem.weight() for problem in problems]
        self._spec = static(problems[0].spec)

    @torch.no_grad()
    def solve(self, options: GptqOptions) -> GptqSolutions:
        """Choose codes, and scales where that is asked for.

        Raises:
            CalibrationError: XᵀX is not finite, or not positive definite with any damping.
        """
        whole, states = torch.cat(self._weights), [problem.state() for problem in self._problems]
        if options.scales == "search" and not self._has_row_blocks:
            states = [self._searched(*one) for one in zip(self._weights, states, strict=True)]
        if options.scales == "search" and self._has_row_blocks:
            found, damping, num_dead, states = self._with_ranges(whole, states, options.damping)
        else:
            result = gptq(
                whole,
                self.gram,
                self._grid(states),
                act_order=options.act_order,
                damping=options.damping,
                block=options.block,
            )
            found, damping, num_dead = result.weight, result.damping, result.num_dead
        if options.sweeps:
            damped = self.gram.clone()
            damped.diagonal().add_(damping * self.gram.diagonal().mean())
            found = descend(
                whole, found, damped, self._grid(states), sweeps=options.sweeps, block=options.block
            )
        return GptqSolutions(list(torch.split(found, self._rows)), states, damping, num_dead)

    def _with_ranges(
        self, whole: Tensor, states: list[State], damping: float
    ) -> tuple[Tensor, float, int, list[State]]:
        used = feedback(self.gram, damping)
        joined = {**states[0], "amax": torch.cat([state["amax"] for state in states])}
        found, amax = gptq_ranges(whole, self.gram, joined, self._spec, damping=used.damping)
        amaxes = torch.split(amax, [len(state["amax"]) for state in states])
        chosen = [{**state, "amax": own} for state, own in zip(states, amaxes, strict=True)]
        return found, used.damping, used.num_dead, chosen

    def _searched(self, weight: Tensor, state: State) -> State:
        """Return scales of whole rows or tensors with the least error of rounding, inputs weighted by their power."""
        candidates = amax_candidates(state["amax"], self._spec)
        diagonal = self.gram.diagonal()
        return {
            **state,
            "amax": search_amax(weight, state, self._spec, candidates, diagonal=diagonal),
        }

    def _grid(self, states: list[State]) -> Grid:
        grids = [
            Grid.of(state, self._spec, (weight.shape[0], weight.shape[1]))
            for weight, state in zip(self._weights, states, strict=True)
        ]
        return Grid(torch.cat([grid.step for grid in grids]), grids[0].element)

    @property
    def _has_row_blocks(self) -> bool:
        """Whether each scale is one of a block of one row, short enough to be tried with GPTQ inside."""
        granularity = self._spec.granularity
        return isinstance(granularity, PerBlock) and [axis for axis, _ in granularity.sizes] == [-1]

    @property
    def _rows(self) -> list[int]:
        return [len(weight) for weight in self._weights]
