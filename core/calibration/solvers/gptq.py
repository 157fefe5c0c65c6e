"""GPTQ (Frantar et al., arXiv:2210.17323): columns rounded in turn, each error made good by the later columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.calibration.solvers.damping import feedback
from octavo.core.calibration.solvers.grid import Grid
from octavo.core.formats.rounding import round_to_grid


@dataclass(frozen=True, eq=False)
class GptqResult:
    """What GPTQ found.

    Attributes:
        weight: fp32 [out, in], values of the grid.
        unrounded: fp32 [out, in]: what each value was before it was rounded, with the errors of the columns before it
            made good. Rounded to nearest, it is `weight`.
        damping: Fraction of the Gram matrix's mean diagonal that was added to it; above the one asked for where
            the matrix was not positive definite with that.
        num_dead: Columns whose input was always zero; they were rounded to nearest.
    """

    weight: Tensor
    unrounded: Tensor
    damping: float
    num_dead: int


@torch.no_grad()
def gptq(
    weight: Tensor,
    gram: Tensor,
    grid: Grid,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    block: int = 128,
) -> GptqResult:
    """Round a weight so that its output changes little.

    Args:
        weight: fp32 [out, in]. Layers that read the same input may be joined along `out`, which is cheaper.
        gram: X^T·X of the layer's input, fp32 [in, in]; any positive factor of it does as well.
        grid: The values that can be taken. Its steps stay, so that any order of columns keeps the groups.
        act_order: Round the columns with the largest input first.
        damping: Fraction of the Gram matrix's mean diagonal that is added to it.
        block: Columns whose errors reach the rest together; changes the time, not the result.

    Raises:
        CalibrationError: the matrix is not finite, or not positive definite with any damping.
    """
    order = column_order(gram, act_order)
    found = feedback(gram[order][:, order], damping)
    columns = _round_columns(weight.T[order], grid.step.T[order], grid, found.factor, block)
    result, unrounded = (_in_place(rows, order) for rows in columns)
    return GptqResult(result, unrounded, found.damping, found.num_dead)


def column_order(gram: Tensor, act_order: bool) -> Tensor:
    """Return the columns in the order of rounding, int64 [in]."""
    if act_order:
        return gram.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(gram), device=gram.device)


def _in_place(rows: Tensor, order: Tensor) -> Tensor:
    """Return the weight [out, in] whose columns these rows are, in this order."""
    result = torch.empty_like(rows)
    result[order] = rows
    return result.T.contiguous()


def _round_columns(
    rows: Tensor, steps: Tensor, grid: Grid, factor: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Round the rows of a transposed weight [in, out] in turn; contiguous rows are what makes this quick.

    Returns:
        The rows rounded, and as they were just before.
    """
    rows, result = rows.clone(), torch.empty_like(rows)
    for start in range(0, len(rows), block):
        stop = min(start + block, len(rows))
        errors = torch.empty_like(rows[start:stop])
        for i in range(start, stop):
            result[i] = round_to_grid(rows[i] / steps[i], grid.element) * steps[i]
            error = (rows[i] - result[i]) / factor[i, i]
            rows[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
            errors[i - start] = error
        rows[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return result, rows
