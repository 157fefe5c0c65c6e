"""The `awq_clip` algorithm: ranges of weights clipped by what that does to the output."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, StrictBool

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.awq_lite import UNSEEN
from octavo.core.calibration.solvers.awq_clip import search_clip
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.formats import PerBlock

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration


class AwqClip(Algorithm):
    """ModelOpt's `AWQClipCalibConfig`, whose names and defaults these are.

    Attributes:
        max_co_batch_size: Accepted and without effect: the search takes no memory that would need it.
        max_tokens_per_batch: Accepted and without effect: XᵀX has all tokens of every batch.
        min_clip_ratio: The smallest part of a block's largest magnitude that is tried.
        shrink_step: Distance between the parts.
        debug: Accepted and without effect.
    """

    method: ClassVar[str] = "awq_clip"
    max_co_batch_size: int = Field(default=1024, gt=0)
    max_tokens_per_batch: int = Field(default=64, gt=0)
    min_clip_ratio: float = Field(default=0.5, gt=0, lt=1, allow_inf_nan=False)
    shrink_step: float = Field(default=0.05, gt=0, le=1, allow_inf_nan=False)
    debug: StrictBool = False

    def needs(self) -> Needs:
        """Return XᵀX."""
        return Needs(gram=True)

    def run(self, calibration: Calibration) -> None:
        """Clip the range of every weight with block scales; others keep their largest magnitudes.

        So do weights that several quantizers round in turn: the peer clips these and then takes the maxima again.

        Raises:
            UnsupportedError: blocks are not along rows.
        """
        for problem in calibration.problems():
            if problem.index is not None or not _is_clipped(problem):
                continue
            if problem.statistics is None or problem.statistics.num_tokens == 0:
                calibration.report(problem, AwqClip.method, fallback=UNSEEN)
                continue
            self._clip(calibration, problem)

    def _clip(self, calibration: Calibration, problem: WeightProblem) -> None:
        weight, quantizer = problem.smoothed_parameter(), problem.quantizer
        is_scaled = quantizer.pre_quant_scale is not None
        state = search_clip(
            weight,
            problem.input_product(),
            problem.spec,
            self.min_clip_ratio,
            self.shrink_step,
            torch.float32 if is_scaled else weight.dtype,
        )
        before = quantizer.named_state()
        ratios = {name: (state[name] / before[name].clamp_min(1e-30)).mean().item() for name in state}
        quantizer.set_state(**state)
        calibration.report(problem, AwqClip.method, clip_ratio=min(ratios.values()))


def _is_clipped(problem: WeightProblem) -> bool:
    """Whether the peer would clip it: it has blocks, and a range that is calibrated."""
    return isinstance(problem.spec.granularity, PerBlock) and bool(problem.spec.state)
