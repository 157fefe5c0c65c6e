"""The `svdquant` algorithm: a product of low rank takes what is loud in a weight, and the rest is rounded."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from octavo.core.calibration.awq_lite import AwqLite
from octavo.core.calibration.smoothing_state import recollect
from octavo.core.calibration.solvers.svdquant import low_rank
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.errors import UnsupportedError
from octavo.core.modules.linear import QuantLinear

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration


class Svdquant(AwqLite):
    """ModelOpt's `SVDQuantConfig`, whose names and defaults these are: `awq_lite`, then a low-rank part of each weight.

    Attributes:
        lowrank: Rank of the part that stays unrounded.
        skip_layers: Globs on names of layers that keep the scales of `max`, without smoothing and low-rank part.
    """

    method: ClassVar[str] = "svdquant"
    moves_weights = True
    lowrank: int = Field(default=32, gt=0)
    skip_layers: tuple[str, ...] | None = None

    def run(self, calibration: Calibration) -> None:
        """Smooth every weight of a linear layer, take its low-rank part out and round the rest.

        Raises:
            UnsupportedError: no layer has a weight with a single format.
        """
        super().run(calibration)
        found = [
            p
            for p in calibration.problems()
            if self.is_solved(p) and type(p.layer).forward is QuantLinear.forward
        ]
        if not found and calibration.is_whole:
            raise UnsupportedError(
                "svdquant takes a low-rank part out of linear layers whose weights have one format each, and no layer "
                "of this model has that"
            )
        for problem in found:
            self._take_out(calibration, problem)

    def is_solved(self, problem: WeightProblem) -> bool:
        """Whether the algorithm works on a weight; `skip_layers` names the others."""
        return super().is_solved(problem) and not any(
            fnmatchcase(problem.layer_name, pattern) for pattern in self.skip_layers or ()
        )

    @torch.no_grad()
    def _take_out(self, calibration: Calibration, problem: WeightProblem) -> None:
        weight = problem.smoothed_parameter()
        factors = low_rank(weight, self.lowrank)
        rest = weight - factors.up @ factors.down
        calibration.set_weight(problem, rest)
        recollect(problem.layer.quantizers()[problem.slot.quantizer], problem.parameter())
        quantizer = problem.quantizer
        quantizer.low_rank_down, quantizer.low_rank_up = (f.float().contiguous() for f in factors)
        taken = 1 - (rest.float().square().sum() / weight.float().square().sum().clamp_min(1e-30)).item()
        calibration.report(problem, self.method, rank=self.lowrank, energy_taken_out=taken)
