"""Coordinate descent on a layer's squared output error, over the values of a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import Grid
from octavo.core.formats.rounding import round_to_grid


@torch.no_grad()
def descend(
    weight: Tensor, start: Tensor, gram: Tensor, grid: Grid, *, sweeps: int = 4, block: int = 128
) -> Tensor:
    """Improve a rounded weight: every value in turn becomes the best one of the grid while the others stay.

    A sweep costs about as much as GPTQ. No row is ever worse than it was.

    Args:
        weight: fp32 [out, in]: what the result should compute.
        start: fp32 [out, in], values of the grid.
        gram: X^T·X of the layer's input, fp32 [in, in].
        grid: The values that can be taken.
        sweeps: Passes over all columns, largest input first; it ends early where a sweep changes nothing.
        block: Columns whose changes reach the rest together; changes the time, not the result.

    Returns:
        fp32 [out, in], values of the grid.
    """
    diagonal = gram.diagonal()
    order = diagonal.argsort(descending=True, stable=True)[: int((diagonal > 0).sum())]
    gram = gram[order][:, order].contiguous()
    rows, steps = start.T[order], grid.step.T[order]
    slope = gram @ (rows - weight.T[order])
    for _ in range(sweeps):
        if not _sweep(rows, steps, slope, gram, grid, block):
            break
    result = start.T.clone()
    result[order] = rows
    return result.T.contiguous()


@torch.no_grad()
def unrounded_optimum(rounded: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """Return, fp32 [out, in], what each value would best be, were it not rounded, while all others stay rounded.

    Rounded to nearest, it is `rounded` once `descend` finds nothing more to improve; how near it is to another code
    says how little that code would cost.

    Args:
        rounded: fp32 [out, in], values of a grid.
        weight: fp32 [out, in]: what the result should compute.
        gram: X^T·X of the layer's input, fp32 [in, in].
    """
    curvature = gram.diagonal()
    shift = ((rounded - weight) @ gram) / curvature.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(curvature > 0, rounded - shift, weight)


def _sweep(rows: Tensor, steps: Tensor, slope: Tensor, gram: Tensor, grid: Grid, block: int) -> bool:
    """Change `rows` [in, out] and their `slope`, gram · (rows − target), in place; return whether it helped."""
    changed = False
    for start in range(0, len(rows), block):
        stop = min(start + block, len(rows))
        near, corner = slope[start:stop].clone(), gram[start:stop, start:stop]
        changes = torch.empty_like(near)
        for i in range(stop - start):
            row, step, curvature = rows[start + i], steps[start + i], corner[i, i]
            best = round_to_grid((row - near[i] / curvature) / step, grid.element) * step
            change = best - row
            # The gain is computed, so that rounding errors at ties cannot make a row worse.
            helps = change * (2 * near[i] + curvature * change) < 0
            changes[i] = torch.where(helps, change, 0.0)
            rows[start + i] = torch.where(helps, best, row)
            near.addr_(corner[i], changes[i])
        slope.addmm_(gram[:, start:stop], changes)
        changed = changed or bool(changes.any())
    return changed
