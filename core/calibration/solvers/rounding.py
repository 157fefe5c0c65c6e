"""The best rounding of a weight that this library knows without running its layer: the solvers in turn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.core.calibration.solvers.descent import descend
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.gptq_ranges import gptq_ranges
from octavo.core.calibration.solvers.grid import Grid
from octavo.core.calibration.solvers.ranges import amax_candidates, search_amax
from octavo.core.calibration.solvers.refit import refit_amax
from octavo.core.formats import PerBlock, PerChannel, QuantSpec

# Longer blocks would take `gptq_ranges` much memory: it holds every candidate of a block.
_LONGEST_BLOCK = 256


@torch.no_grad()
def best_rounding(
    weight: Tensor,
    gram: Tensor,
    state: Mapping[str, Tensor],
    spec: QuantSpec,
    *,
    damping: float = 0.01,
    sweeps: int = 4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Choose scales and codes with little error of the output: GPTQ with a search of scales, then coordinate descent.

    Scales of blocks of one row are chosen on the way, others before. Those of integers, each for values of one row, are
    refitted to the codes, and the codes to them.

    Args:
        weight: fp32 [out, in].
        gram: XᵀX of the layer's input, fp32 [in, in].
        state: Calibrated tensors; all but `amax` stay.
        spec: A format with static scales, not stacked.
        damping: Fraction of the Gram matrix's mean diagonal that is added to it.
        sweeps: Passes of each coordinate descent over all columns, at most.

    Returns:
        The weight, fp32 [out, in], values of the grid, and its state.

    Raises:
        CalibrationError: the matrix is not finite, or not positive definite with any damping.
    """
    shape = (weight.shape[0], weight.shape[1])
    damped = gram.clone()
    damped.diagonal().add_(damping * gram.diagonal().mean())
    state = dict(state)
    if _has_short_row_blocks(spec):
        rounded, state["amax"] = gptq_ranges(weight, gram, state, spec, damping=damping)
    else:
        state["amax"] = search_amax(weight, state, spec, amax_candidates(state["amax"], spec), gram=damped)
        rounded = gptq(weight, gram, Grid.of(state, spec, shape), damping=damping).weight
    grid = Grid.of(state, spec, shape)
    rounded = descend(weight, rounded, damped, grid, sweeps=sweeps)
    if spec.element_type.is_float or not scales_are_of_rows(spec):
        return rounded, state
    codes = grid.codes(rounded)
    state["amax"] = refit_amax(weight, codes, damped, state, spec)
    grid = Grid.of(state, spec, shape)
    return descend(weight, codes * grid.step, damped, grid, sweeps=sweeps), state


def scales_are_of_rows(spec: QuantSpec) -> bool:
    """Whether each scale is for values of one row, so that weights can be joined along the rows."""
    match spec.granularity:
        case PerBlock(sizes=sizes):
            return set(dict(sizes)) == {-1}
        case PerChannel(axis=axis):
            return axis in (0, -2)
    return False


def _has_short_row_blocks(spec: QuantSpec) -> bool:
    if not isinstance(spec.granularity, PerBlock) or not scales_are_of_rows(spec):
        return False
    return dict(spec.granularity.sizes)[-1] <= _LONGEST_BLOCK
