"""The `compensate` algorithm: layer after layer is rounded, and each makes good what the ones before it lost."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.compensated_block import compensate_block
from octavo.core.calibration.layerwise import Layerwise
from octavo.core.calibration.statistics import Needs


class AlwaysLayerwise(Layerwise):
    """Block by block, in any case."""

    enable: Literal[True] = True


class Compensate(Algorithm):
    """Round the weights of a block in the order in which its layers run, each for the inputs that it will really get.

    A layer's output on what the quantized layers before it produce should be that of the original model on what it
    read there (GPTAQ, arXiv:2504.02692); where its output is added to the residual stream, it makes good what the
    stream has lost, too. That gives a real weight, which `solvers.rounding.best_rounding` rounds: GPTQ with a search of
    scales, and coordinate descent. A weight whose output on held-out tokens would be worse than that of rounding to
    nearest is rounded to nearest.

    Per block, the data runs once through the original block, once through the quantized one, and for each group of
    layers with a common input up to there: about 4 passes of the data in all for a Llama (5 with static scales of
    activations), besides one at the start. Two streams of activations and the original inputs of one block's layers
    are held, on disk beyond `layerwise.memory_limit`. Experts whose tokens differ from one model to the other are
    rounded without compensation, all those of a block at once; so are weights that are stacked. Weights outside the
    blocks keep the scales of `max`.

    Attributes:
        damping: How firmly weights are kept where the data says little: the fraction of the mean of XᵀX's diagonal that
            is added to it.
        sweeps: Passes of coordinate descent over all columns, at most.
        compensate_inputs: Make good what earlier layers lost. Off: only round for the inputs that there will be.
        compensate_residual: Make good what the residual stream has lost.
        share_of_rounded_inputs: How much of it to make good where inputs are rounded themselves, 0 to 1. All of it
            gives the least error of each layer, and a larger one of the model.
    """

    method: ClassVar[str] = "compensate"
    moves_weights = True
    layerwise: AlwaysLayerwise = AlwaysLayerwise()
    damping: float = Field(default=0.01, gt=0, allow_inf_nan=False, strict=True)
    sweeps: int = Field(default=4, ge=0, strict=True)
    compensate_inputs: bool = Field(default=True, strict=True)
    compensate_residual: bool = Field(default=True, strict=True)
    share_of_rounded_inputs: float = Field(default=0.5, ge=0, le=1, strict=True)
    # Which layers write to a sum, and who reads it: {(class of block, name inside): reader, or None}.
    _sums: dict[tuple[type, str], str | None] = PrivateAttr(default_factory=dict)

    def needs(self) -> Needs:
        """Return that blocks run in the original model, too."""
        return Needs(original_inputs=True)

    def run(self, calibration: Calibration) -> None:
        """Round the weights of a block.

        Raises:
            CalibrationError: a weight is offloaded, or data gives values that are not finite; the layer is named.
        """
        if calibration.block is None:
            for problem in calibration.problems():
                calibration.report(problem, self.method, chosen="max", reason="outside the blocks")
            return
        compensate_block(calibration, calibration.block, self, self._sums)
