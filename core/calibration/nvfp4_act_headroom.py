"""The `nvfp4_act_headroom` algorithm: second-level scales of NVFP4 inputs with room above what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.solvers.activation_range import headroom_amax
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.console import say
from octavo.core.quantizers import TensorQuantizer

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration

_WEIGHT_ALGORITHMS = ("max", "mse", "local_hessian")


class Nvfp4ActHeadroom(Algorithm):
    """Which range inputs get; names and defaults are those of ModelOpt's `NVFP4ActHeadroomCalibConfig`.

    The range behind the second-level scale is `rho` times a low percentile of the maxima of the input's blocks, and at
    least a high one: rare blocks above it are clipped, and blocks above all that were seen still fit.

    Attributes:
        anchor_percentile: The low percentile.
        upper_percentile: The high percentile; 100 is the largest magnitude.
        rho: Headroom. At least 28672 would leave the range of E4M3's normal numbers.
        weight_scale_algorithm: What to do with the weights: `max`, `mse` or `local_hessian`, a dict with `method` and
            options.
    """

    method: ClassVar[str] = "nvfp4_act_headroom"
    anchor_percentile: float = Field(default=1.0, gt=0, le=100)
    upper_percentile: float = Field(default=99.99, gt=0, le=100)
    rho: float = Field(default=16384.0, gt=0, lt=28672)
    weight_scale_algorithm: dict[str, Any] = Field(default={"method": "max"})

    @field_validator("weight_scale_algorithm", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        found = {"method": "max"} if value is None else {"method": value} if isinstance(value, str) else value
        method = found.get("method") if isinstance(found, Mapping) else found
        if method not in _WEIGHT_ALGORITHMS:
            raise PydanticCustomError(
                "method",
                "method {method}; expected one of {known}",
                {"method": repr(method), "known": ", ".join(_WEIGHT_ALGORITHMS)},
            )
        return found

    def needs(self) -> Needs:
        """Return that the maxima of blocks are needed, and what the weights' algorithm needs."""
        return reduce(Needs.__or__, (a.needs() for a in self._weight_algorithms()), Needs(block_amax=True))

    @torch.no_grad()
    def run(self, calibration: Calibration) -> None:
        """Set the range of every NVFP4 input that still has its largest magnitude."""
        for algorithm in self._weight_algorithms():
            algorithm.run(calibration)
        done: dict[TensorQuantizer, float] = {}
        for problem in calibration.problems():
            quantizer = problem.inputs
            if quantizer is None or quantizer.spec is None or quantizer.spec.global_max is None:
                continue
            reason = _reason_to_leave(problem, quantizer) if quantizer not in done else None
            if reason is not None:
                calibration.report(problem, self.method, fallback=reason)
                continue
            if quantizer not in done:
                done[quantizer] = self._set_range(problem, quantizer)
            calibration.report(problem, self.method, input_amax=done[quantizer])
        if not done and calibration.block is None:
            say(f"warning: {self.method} found no NVFP4 inputs with calibrated ranges", calibration.quiet)

    def _set_range(self, problem: WeightProblem, quantizer: TensorQuantizer) -> float:
        statistics = problem.statistics
        assert statistics is not None  # noqa: S101 (the caller leaves the others out)
        largest = float(statistics.amax.max())
        amax = headroom_amax(
            statistics.block_amax_counts, largest, self.anchor_percentile, self.upper_percentile, self.rho
        )
        state = quantizer.named_state()
        quantizer.set_state(**{**state, "global_amax": torch.full_like(state["global_amax"], amax)})
        return amax

    def _weight_algorithms(self) -> list[Algorithm]:
        from octavo.core.calibration.algorithms import algorithms_of

        return algorithms_of(self.weight_scale_algorithm)


def _reason_to_leave(problem: WeightProblem, quantizer: TensorQuantizer) -> str | None:
    if problem.statistics is None:
        return "the range of max: calibration data never reached the layer"
    if problem.statistics.block_amax_counts.dim() == 0:
        return "the range of max: the statistics hold no maxima of blocks"
    if quantizer.pre_quant_scale is not None:
        return "the range there was: the input is scaled by an algorithm before this one"
    if not torch.equal(quantizer.global_amax, problem.statistics.amax.max()):
        return "the range there was: it is not the largest magnitude"
    return None
