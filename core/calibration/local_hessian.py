"""The `local_hessian` algorithm: like `mse`, with errors weighted by what each block of the input looks like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, StrictBool
from torch import Tensor

from octavo.core.calibration.mse import Mse
from octavo.core.calibration.output_quality import OutputQuality
from octavo.core.calibration.solvers.grid import Grid
from octavo.core.calibration.solvers.ranges import all_e4m3_candidates, amax_candidates, search_amax
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.formats import compute_amax

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration

_UNSEEN = "squared errors, as mse: calibration data never reached the layer, or it has no input to measure"


class LocalHessian(Mse):
    """Which values of amax are tried; names and defaults are those of ModelOpt's `LocalHessianCalibConfig`.

    The amax of each block is the one with the least (W − Q(W)) H (W − Q(W))ᵀ, where H is XᵀX of the block's columns.
    Second-level scales are shared first by weights that read the same tensor.

    Attributes:
        fp8_scale_sweep: Try all 126 positive E4M3 block scales, on static NVFP4 weights; others keep their scales.
            Off: multiples of the largest magnitude as in `mse`, on all static weights.
        block_size: Columns whose products count; those of different blocks do not.
    """

    method: ClassVar[str] = "local_hessian"
    fp8_scale_sweep: StrictBool = True
    block_size: int = Field(default=16, ge=1, strict=True)

    def needs(self) -> Needs:
        """Return that XᵀX is needed."""
        return Needs(gram=True)

    @torch.no_grad()
    def run(self, calibration: Calibration) -> None:
        """Search the amax of every static weight that still has its largest magnitude; report the others."""
        calibration.share_second_levels()
        calibration.report_unsolved(self.method)
        for problem in calibration.problems():
            reason = self._reason_to_leave(problem)
            if reason is not None:
                calibration.report(problem, self.method, fallback=reason)
            else:
                self._search(calibration, problem)

    def _search(self, calibration: Calibration, problem: WeightProblem) -> None:
        weight, state, spec = problem.weight(), problem.state(), problem.spec
        gram = None if problem.statistics is None or not problem.has_input else problem.gram()
        local = None if gram is None else _block_diagonal(gram, self.block_size)
        amax = search_amax(weight, state, spec, self._candidates(problem), gram=local)
        if gram is None:
            calibration.report(problem, self.method, fallback=_UNSEEN)
        else:
            quality, nearest = OutputQuality(problem, gram), problem.rounded()
            found = Grid.of({**state, "amax": amax}, spec, (weight.shape[0], weight.shape[1])).round(weight)
            calibration.report(
                problem,
                self.method,
                error_before=quality.error(nearest).tokens,
                error_after=quality.error(found).tokens,
                **calibration.report_errors(problem, weight, found),
            )
        problem.set_state({**state, "amax": amax})

    def _candidates(self, problem: WeightProblem) -> Iterator[Tensor]:
        state = problem.state()
        if self.fp8_scale_sweep:
            return all_e4m3_candidates(state["amax"], state["global_amax"])
        return amax_candidates(state["amax"], problem.spec, self.multipliers(state["amax"].device).tolist())

    def _reason_to_leave(self, problem: WeightProblem) -> str | None:
        spec = problem.spec
        if spec.dynamic:
            return f"scales of max: {self.method} searches static scales, found {spec}; use type='static'"
        if self.fp8_scale_sweep and spec.global_max is None:
            return f"scales of max: fp8_scale_sweep is for static NVFP4, found {spec}"
        if not torch.equal(problem.state()["amax"], compute_amax(problem.weight(), spec)):
            return "the scales there were: they are not those of max"
        return None


def _block_diagonal(gram: Tensor, length: int) -> Tensor:
    """Return the matrix without products of columns in different blocks."""
    block = torch.arange(len(gram), device=gram.device) // length
    return torch.where(block[:, None] == block, gram, 0.0)
