"""The `gptq` algorithm (Frantar et al., arXiv:2210.17323): codes with which the output of a layer changes little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, StrictBool
from torch import Tensor

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.gptq_group import GptqGroup, GptqOptions
from octavo.core.calibration.output_quality import OutputQuality
from octavo.core.calibration.solvers.descent import unrounded_optimum
from octavo.core.calibration.solvers.grid import static
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.console import say, track
from octavo.core.errors import CalibrationError, listed

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration

_HELD_TOKENS = 256
# Rows of weights that are joined: more only take memory.
_MAX_ROWS = 32768
_WORSE = "round-to-nearest: the result was worse on all tokens or on the held ones"
_UNSEEN = "round-to-nearest: calibration data never reached the layer, or it has no input to measure"


class Gptq(Algorithm):
    """How codes are chosen. The first three options, and all defaults, are those of ModelOpt's `GPTQCalibConfig`.

    From one pass's XᵀX, or with `layerwise` from that of each block behind the quantized blocks before it. Weights that
    read the same tensor are solved at once. Scales that were computed from the values at hand become static. A weight
    whose result is worse than rounding to nearest, over all tokens or on the held ones, is rounded to nearest.

    Attributes:
        perc_damp: Fraction of the mean of XᵀX's diagonal that is added to the diagonal.
        block_size: Columns whose errors reach the rest together: time, not the result.
        fused: ModelOpt's choice of a kernel; changes nothing here.
        act_order: Ours: round the columns with the largest input first.
        scales: Ours: `max` keeps the scales there are (of `max`, or of an algorithm before this one), `search` chooses
            them, block by block on the way.
        sweeps: Ours: sweeps of coordinate descent over the result.
    """

    method: ClassVar[str] = "gptq"
    moves_weights = True
    perc_damp: float = Field(default=0.01, gt=0, le=1, strict=True)
    block_size: int = Field(default=128, ge=1, strict=True)
    fused: StrictBool = False
    act_order: StrictBool = False
    scales: Literal["max", "search"] = "max"
    sweeps: int = Field(default=0, ge=0, strict=True)

    def needs(self) -> Needs:
        """Return that XᵀX and held tokens are needed."""
        return Needs(gram=True, held_tokens=_HELD_TOKENS)

    @torch.no_grad()
    def run(self, calibration: Calibration) -> None:
        """Choose the codes of every weight.

        Raises:
            CalibrationError: XᵀX of an input is not finite; the layers are named.
        """
        calibration.share_second_levels()
        calibration.report_unsolved(self.method)
        for problems in track(calibration.grouped(), "gptq", calibration.quiet):
            for joined in _joined(problems, by_scale=self.scales == "search"):
                if joined[0].statistics is None or not joined[0].has_input:
                    for problem in joined:
                        calibration.report(problem, self.method, fallback=_UNSEEN)
                    continue
                self._solve(calibration, joined)
        if few := calibration.few_tokens():
            say(f"warning: gptq: {few}", calibration.quiet)

    def _solve(self, calibration: Calibration, problems: list[WeightProblem]) -> None:
        group = GptqGroup(problems)
        try:
            found = group.solve(
                GptqOptions(self.perc_damp, self.block_size, self.act_order, self.scales, self.sweeps)
            )
        except CalibrationError as error:
            raise CalibrationError(f"{listed([p.name for p in problems])}: {error}") from error
        statistics = problems[0].statistics
        assert statistics is not None  # noqa: S101 (the caller leaves the others out)
        notes = {
            "tokens": statistics.num_tokens,
            "channels": statistics.num_channels,
            "damping": found.damping,
            "dead_columns": found.num_dead,
        }
        if found.damping > self.perc_damp:
            notes["damping_asked_for"] = self.perc_damp
        for problem, weight, state in zip(problems, found.weights, found.states, strict=True):
            self._keep_the_better(calibration, problem, group.gram, weight, state, notes)

    def _keep_the_better(
        self,
        calibration: Calibration,
        problem: WeightProblem,
        gram: Tensor,
        weight: Tensor,
        state: dict[str, Tensor],
        notes: dict[str, float],
    ) -> None:
        quality, nearest = OutputQuality(problem, gram), problem.rounded()
        before, after = quality.error(nearest), quality.error(weight)
        is_worse = after.is_worse_than(before)
        if is_worse:
            weight, state = nearest, problem.state()
        calibration.report(
            problem,
            self.method,
            **notes,
            error_before=before.tokens,
            error_after=(before if is_worse else after).tokens,
            **calibration.report_errors(problem, problem.weight(), weight),
            **({"fallback": _WORSE} if is_worse else {}),
        )
        if not is_worse and calibration.block is not None:  # of a whole model they would not fit
            damped = gram + notes["damping"] * gram.diagonal().mean() * torch.eye(
                len(gram), device=gram.device
            )
            calibration.unrounded[problem.name] = unrounded_optimum(weight, problem.weight(), damped)
        problem.set_state(state)
        if not is_worse:
            calibration.set_weight(problem, weight)


def _joined(problems: Iterable[WeightProblem], by_scale: bool) -> Iterator[list[WeightProblem]]:
    """Yield weights that can be solved as one: of one input and format; `by_scale`: and one second-level scale."""
    left = list(problems)
    while left:
        first, rows = left[0], 0
        joined: list[WeightProblem] = []
        for problem in left:
            num_rows = problem.weight().shape[0]
            if _are_alike(first, problem, by_scale) and (not joined or rows + num_rows <= _MAX_ROWS):
                joined.append(problem)
                rows += num_rows
        left = [problem for problem in left if problem not in joined]
        yield joined


def _are_alike(first: WeightProblem, second: WeightProblem, by_scale: bool) -> bool:
    if first is second:
        return True
    if first.statistics is not second.statistics or static(first.spec) != static(second.spec):
        return False
    if not (first.has_input and second.has_input):
        return False
    scales = first.input_scale(), second.input_scale()
    if (scales[0] is None) != (scales[1] is None):
        return False
    if scales[0] is not None and scales[1] is not None and not torch.equal(*scales):  # type: ignore[arg-type]
        return False
    if not by_scale or first.spec.global_max is None:
        return True
    return torch.equal(first.state()["global_amax"], second.state()["global_amax"])
