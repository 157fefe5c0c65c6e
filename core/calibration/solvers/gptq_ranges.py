"""GPTQ that chooses each block's scale when it reaches the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.core.calibration.solvers.damping import feedback
from octavo.core.calibration.solvers.objective import block_length
from octavo.core.calibration.solvers.ranges import amax_multiples
from octavo.core.formats import QuantSpec
from octavo.core.formats.elements import ElementType
from octavo.core.formats.rounding import round_to_grid
from octavo.core.formats.scales import scales_from_amax


@torch.no_grad()
def gptq_ranges(
    weight: Tensor,
    gram: Tensor,
    state: Mapping[str, Tensor],
    spec: QuantSpec,
    *,
    multiples: Sequence[float] | None = None,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Round a weight as GPTQ does and choose its scales on the way, with the errors of earlier blocks carried in.

    Every multiple of the block's `amax` is tried with GPTQ inside the block; the one with the least error of the
    whole output stays. Blocks are taken in the order of their input, and so are the columns inside.

    Args:
        weight: fp32 [out, in].
        gram: X^T·X of the layer's input, fp32 [in, in].
        state: Calibrated tensors; all but `amax` stay.
        spec: A format with static scales, each for a block of one row. Long blocks cost memory: the rows of a block
            are held once for every multiple, so that whole rows are better searched before `gptq`.
        multiples: Of `amax`, negative ones for negative scales; default: `amax_multiples`.
        damping: Fraction of the Gram matrix's mean diagonal that is added to it.

    Returns:
        The weight, fp32 [out, in], values of the grid, and its `amax`.

    Raises:
        CalibrationError: the matrix is not finite, or not positive definite with any damping.
    """
    length = block_length(spec, weight.shape[1])
    groups = _group_order(gram.diagonal(), length)
    order = torch.cat(groups)
    factor = feedback(gram[order][:, order], damping).factor
    rows, result = weight.T[order], torch.empty_like(weight.T)
    amax = state["amax"].reshape(len(weight), -1).clone()
    tried = torch.tensor(multiples or amax_multiples(spec), device=weight.device)[:, None]
    start = 0
    for columns in groups:
        stop, group = start + len(columns), int(columns[0]) // length
        candidates = amax[:, group] * tried
        steps = scales_from_amax(candidates, state.get("global_amax"), spec).step
        values, errors = _round_block(
            rows[start:stop], steps, factor[start:stop, start:stop], spec.element_type
        )
        chosen = errors.square().sum(0).argmin(0)
        every = torch.arange(len(weight), device=weight.device)
        amax[:, group] = candidates[chosen, every]
        result[columns] = values[:, chosen, every]
        rows[stop:].addmm_(factor[start:stop, stop:].T, errors[:, chosen, every], alpha=-1)
        start = stop
    return result.T.contiguous(), amax.reshape(state["amax"].shape)


def _group_order(diagonal: Tensor, length: int) -> list[Tensor]:
    """Return the columns of each group, groups and columns with the largest input first."""
    starts = range(0, len(diagonal), length)
    groups = [s + diagonal[s : s + length].argsort(descending=True, stable=True) for s in starts]
    return sorted(groups, key=lambda g: float(diagonal[g].mean()), reverse=True)


def _round_block(rows: Tensor, steps: Tensor, factor: Tensor, element: ElementType) -> tuple[Tensor, Tensor]:
    """Round rows [n, out] with each of the steps [tries, out]; return values and scaled errors [n, tries, out]."""
    rows = rows[:, None].expand(-1, len(steps), -1).clone()
    values, errors = torch.empty_like(rows), torch.empty_like(rows)
    for i in range(len(rows)):
        values[i] = round_to_grid(rows[i] / steps, element) * steps
        errors[i] = (rows[i] - values[i]) / factor[i, i]
        rows[i + 1 :].addcmul_(factor[i, i + 1 :, None, None], errors[i], value=-1)
    return values, errors
