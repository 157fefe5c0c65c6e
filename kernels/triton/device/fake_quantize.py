"""Kernels that round values to what their codes stand for, and stop gradients where values saturate."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.blocks import maxima_of, steps_of, values_of
from octavo.kernels.triton.device.grid import to_grid
from octavo.kernels.triton.device.hadamard import hadamard
from octavo.kernels.triton.device.numbers import rounded, widened
from octavo.kernels.triton.device.tile import blocks_of

_RANGE_SLACK = tl.constexpr(1 + 2.0**-20)  # as core.formats.in_range has it


@triton.jit
def fake_quantize_kernel(
    result,
    x,
    amax,
    global_amax,
    view,
    FORMAT: tl.constexpr,
    TILE: tl.constexpr,
    LENGTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Store `core.formats.fake_quantize(x, [amax, global_amax])`, of `x` transformed in blocks of LENGTH if not 1."""
    block, exists = blocks_of(view, TILE)
    values, offsets, is_there = values_of(x, block, exists, view, TILE)
    if LENGTH > 1:
        values = hadamard(values, TILE, LENGTH, STEPS, x.dtype.element_ty)
    largest, largest_of_all = maxima_of(values, amax, global_amax, block, exists, view, FORMAT)
    steps, step, _ = steps_of(values, largest, largest_of_all, FORMAT, x.dtype.element_ty)
    rounded_values = rounded(to_grid(steps, FORMAT) * step, x.dtype.element_ty)
    tl.store(result + offsets, rounded_values, mask=is_there)


@triton.jit
def mask_gradient_kernel(result, grad, x, amax, global_amax, view, FORMAT: tl.constexpr, TILE: tl.constexpr):
    """Store `grad * core.formats.in_range(x, [amax, global_amax])`."""
    block, exists = blocks_of(view, TILE)
    values, offsets, is_there = values_of(x, block, exists, view, TILE)
    largest, largest_of_all = maxima_of(values, amax, global_amax, block, exists, view, FORMAT)
    steps, _, _ = steps_of(values, largest, largest_of_all, FORMAT, x.dtype.element_ty)
    inside = (steps >= FORMAT.low * _RANGE_SLACK) & (steps <= FORMAT.high * _RANGE_SLACK)
    if FORMAT.scale == "e4m3":
        is_nan = (largest != largest) | (largest_of_all != largest_of_all)
        covered = tl.where(largest < largest_of_all, largest, largest_of_all)
        inside = inside | (~is_nan[:, None, None] & (tl.abs(values) <= covered[:, None, None]))
    gradient = widened(tl.load(grad + offsets, mask=is_there, other=0.0))
    masked = gradient * tl.where(inside, 1.0, 0.0)
    tl.store(result + offsets, rounded(masked, grad.dtype.element_ty), mask=is_there)
