"""The `smoothquant` algorithm: outliers of INT8 inputs moved into the weights' columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.smoothing_state import smooth
from octavo.core.calibration.solvers.smoothing import search_smoothing, smoothquant_scale
from octavo.core.calibration.statistics import InputStatistics, Needs
from octavo.core.calibration.support import FAMILIES, INT
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.errors import UnsupportedError
from octavo.core.formats import PerTensor

Alpha = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
HELD_TOKENS = 1024


_OTHER_FORMATS = "not smoothed: it takes INT8 weights whose inputs are INT8 with one calibrated scale"


class Smoothquant(Algorithm):
    """ModelOpt's `SmoothQuantCalibConfig`, whose names and defaults these are; `search` is Octavo's own.

    Attributes:
        alpha: Share of the difficulty that moves into the weight. `search` tries none and 0 to 1 for each input, and
            takes what costs its layers' outputs least on held tokens; layers that read one tensor get one factor.
    """

    method: ClassVar[str] = "smoothquant"
    solves: ClassVar[frozenset[str]] = frozenset({INT})
    leaves: ClassVar[frozenset[str]] = frozenset(FAMILIES) - {INT}
    alpha: Alpha | Literal["search"] = 1.0

    def needs(self) -> Needs:
        """Return maxima of channels, and tokens to judge candidates by where there are several."""
        return Needs(maxima=True, held_tokens=HELD_TOKENS if self.alpha == "search" else 0)

    def run(self, calibration: Calibration) -> None:
        """Smooth every layer with INT8 weights and an INT8 input of one scale; others stay as they are.

        Raises:
            UnsupportedError: no layer has these formats.
        """
        smoothed = 0
        for group in calibration.grouped():
            found = [problem for problem in group if _is_int8(problem)]
            smoothed += len(found)
            for problem in group:
                if problem not in found:
                    calibration.report(problem, self.method, fallback=_OTHER_FORMATS)
            if not found or (statistics := found[0].statistics) is None:
                continue
            if self.alpha == "search":
                self._search(calibration, found, statistics)
                continue
            for problem in found:
                scale = smoothquant_scale(statistics.amax, problem.parameter(), self.alpha)
                smooth(problem.layer_name, problem.layer, scale, statistics.amax, problem.slot)
                calibration.report(problem, self.method, alpha=self.alpha)
        if not smoothed and calibration.is_whole:
            raise UnsupportedError(
                "smoothquant smooths linear layers with INT8 weights and INT8 inputs of one calibrated scale each, and "
                "no layer of this model has these; use the algorithm 'smooth' or 'awq_lite' for other formats"
            )

    def _search(
        self, calibration: Calibration, group: Sequence[WeightProblem], statistics: InputStatistics
    ) -> None:
        inputs = group[0].inputs
        assert inputs is not None  # noqa: S101 (`_is_int8`)
        assert inputs.spec is not None  # noqa: S101
        found = search_smoothing(
            [problem.parameter() for problem in group],
            statistics.amax,
            statistics.held.tokens(),
            group[0].spec,
            inputs.spec,
        )
        for problem in group:
            if found.alpha is not None:
                smooth(
                    problem.layer_name, problem.layer, found.pre_quant_scale, statistics.amax, problem.slot
                )
            calibration.report(
                problem,
                self.method,
                alpha=found.alpha,
                output_error=found.error,
                output_error_without=found.plain_error,
            )


def _is_int8(problem: WeightProblem) -> bool:
    inputs = problem.inputs
    if problem.index is not None or inputs is None or inputs.spec is None:
        return False
    is_static = isinstance(inputs.spec.granularity, PerTensor) and not inputs.spec.dynamic
    return is_static and problem.spec.element == inputs.spec.element == "int8"
