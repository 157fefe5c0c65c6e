"""Scales refitted to codes: the closed form of least squares, one group of columns after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import Grid
from octavo.core.calibration.solvers.objective import block_length
from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import scales_from_amax


@torch.no_grad()
def refit_amax(
    weight: Tensor, codes: Tensor, gram: Tensor, state: Mapping[str, Tensor], spec: QuantSpec
) -> Tensor:
    """Return the `amax` whose scales bring the output of these codes nearest; no row is worse than before.

    Groups of columns are refitted in turn, each knowing the changes before it, to the nearest scale that the
    format can store.

    Args:
        weight: fp32 [out, in]: what the result should compute.
        codes: fp32 [out, in]: codes, as `Grid.codes` returns them; they stay.
        gram: X^T·X of the layer's input, fp32 [in, in].
        state: Calibrated tensors that the codes were made with; all but `amax` stay.
        spec: A format with static scales, each for values of one row.
    """
    shape = (weight.shape[0], weight.shape[1])
    length = block_length(spec, shape[1])
    grid = Grid.of(state, spec, shape)
    amax = state["amax"].reshape(shape[0], -1).clone()
    change = codes * grid.step - weight
    for group, start in enumerate(range(0, shape[1], length)):
        columns = slice(start, min(start + length, shape[1]))
        direction = codes[:, columns]
        slope = (change @ gram[:, columns] * direction).sum(1)
        curvature = ((direction @ gram[columns, columns]) * direction).sum(1)
        old = grid.step[:, start]
        wanted = (old - slope / curvature) * spec.element_type.max
        new = scales_from_amax(wanted, state.get("global_amax"), spec).step
        gained = (new - old) * (2 * slope + curvature * (new - old)) < 0  # False where the curvature is 0
        amax[:, group] = torch.where(gained, wanted, amax[:, group])
        change[:, columns] += direction * torch.where(gained, new - old, 0.0)[:, None]
    return amax.reshape(state["amax"].shape)
