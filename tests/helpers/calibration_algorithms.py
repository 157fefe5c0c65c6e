"""An algorithm for tests, which the fixture `nearest` makes known to configs."""

from __future__ import annotations

from typing import Any, ClassVar

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.statistics import Needs


class Nearest(Algorithm):
    """Round to the grid of the largest magnitudes, and report it; what it saw of inputs stays in `seen`."""

    method: ClassVar[str] = "nearest"
    seen: ClassVar[dict[str, Any]] = {}

    def needs(self) -> Needs:
        return Needs(gram=True)

    def run(self, calibration: Calibration) -> None:
        for problem in calibration.problems():
            self.seen[problem.name] = problem.statistics
            original, rounded = problem.weight(), problem.rounded()
            errors = calibration.report_errors(problem, original, rounded)
            problem.set_state(problem.state())
            calibration.set_weight(problem, rounded)
            calibration.report(problem, self.method, alpha=0.5, **errors)
