"""The `awq_lite` algorithm: columns of weights scaled up where inputs are loud, so that they round finer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, StrictBool

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.smoothing_state import smooth
from octavo.core.calibration.solvers.awq import AwqScale, alphas, search_awq
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.weight_problem import WeightProblem

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration

UNSEEN = "no calibration data reached it: it keeps the scales of 'max'"


class AwqLite(Algorithm):
    """ModelOpt's `AWQLiteCalibConfig`, whose names and defaults these are.

    A weight that several quantizers round in turn is searched under the first of them, as there.

    Attributes:
        alpha_step: Distance of the exponents that are tried, from 0 to 1.
        debug: Put the output error of every exponent into the report.
    """

    method: ClassVar[str] = "awq_lite"
    alpha_step: float = Field(default=0.1, gt=0, le=1, allow_inf_nan=False)
    debug: StrictBool = False

    def needs(self) -> Needs:
        """Return the inputs' mean magnitudes and XᵀX, from which the error of every candidate follows."""
        return Needs(channels=True, gram=True)

    def run(self, calibration: Calibration) -> None:
        """Scale the columns of every weight of a linear layer; stacks of experts keep their largest magnitudes."""
        tried = alphas(self.alpha_step)
        for problem in calibration.problems(chains=True):
            if not self.is_solved(problem):
                continue
            statistics = problem.statistics
            if statistics is None or statistics.num_tokens == 0:
                calibration.report(problem, AwqLite.method, fallback=UNSEEN)
                continue
            found = search_awq(
                problem.parameter(), statistics.batch_mean_abs(), statistics.product(), problem.spec, tried
            )
            smooth(problem.layer_name, problem.layer, found.pre_quant_scale, statistics.amax, problem.slot)
            calibration.report(problem, AwqLite.method, **self._details(found))

    def is_solved(self, problem: WeightProblem) -> bool:
        """Whether the algorithm works on a weight: not on those of a stack, which keep their largest magnitudes."""
        return problem.index is None

    def _details(self, found: AwqScale) -> dict[str, object]:
        details: dict[str, object] = {
            "alpha": round(found.alpha, 4),
            "output_error": found.errors[found.alpha],
        }
        if self.debug:
            details["errors"] = {f"{alpha:.4g}": error for alpha, error in found.errors.items()}
        return details
