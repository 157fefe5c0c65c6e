"""The plugin's own algorithm: weights that are halved before they are rounded, under the scales of the whole ones."""

from __future__ import annotations

from typing import Any, ClassVar

from octavo.core.calibration.algorithm import Algorithm


class Halve(Algorithm):
    """Round half of each weight."""

    method: ClassVar[str] = "halve"
    times: int = 1

    def run(self, calibration: Any) -> None:
        for problem in calibration.problems():
            halved = problem.grid().round(problem.weight() / 2**self.times)
            problem.set_state(problem.state())
            calibration.set_weight(problem, halved)
            calibration.report(problem, self.method, times=self.times)
