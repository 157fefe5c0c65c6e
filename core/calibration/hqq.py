"""The `hqq` algorithm: ranges of integer weights from the weights alone (Badri & Shaji, 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.solvers.grid import static
from octavo.core.calibration.solvers.ranges import amax_candidates, search_amax
from octavo.core.calibration.support import INT, INT_BLOCKS

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration


class Hqq(Algorithm):
    """What the error of rounding is; not one of ModelOpt's algorithms.

    Each scale is the one with the least sum of |w − q(w)|^power, which forgives outliers: of several parts of the
    largest magnitude and, with one more code below zero, of either sign. No data is needed. There are no zero points,
    which are what HQQ itself chooses, and a scale alone forgives outliers by clipping them: HQQ's own power, 0.7, loses
    more than rounding to nearest does on the models we tried, so that squared errors are the default.

    Attributes:
        power: Exponent of the errors. 0.7 is HQQ's; 2 is the squared error.
    """

    method: ClassVar[str] = "hqq"
    solves: ClassVar[frozenset[str]] = frozenset({INT, INT_BLOCKS})
    power: float = Field(default=2.0, gt=0, le=2, strict=True)

    @torch.no_grad()
    def run(self, calibration: Calibration) -> None:
        """Search the scales of every weight."""
        calibration.report_unsolved(self.method)
        for problem in calibration.problems():
            state, spec = problem.state(), static(problem.spec)
            candidates = amax_candidates(state["amax"], spec)
            amax = search_amax(problem.weight(), state, spec, candidates, power=self.power)
            problem.set_state({**state, "amax": amax})
            calibration.report(problem, self.method)
