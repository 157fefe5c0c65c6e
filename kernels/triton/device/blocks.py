"""Values of this program's blocks with their scales: what quantizing and fake-quantizing begin with."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.numbers import widened
from octavo.kernels.triton.device.scales import in_steps, scales
from octavo.kernels.triton.device.tile import elements_of, global_of, largest_of, scale_of


@triton.jit
def values_of(x, block, exists, view, TILE: tl.constexpr):
    """Return the values, fp32 [blocks, rows, cols], 0 where there are none, with their offsets and which there are."""
    offsets, is_there = elements_of(block, exists, view, TILE)
    return widened(tl.load(x + offsets, mask=is_there, other=0.0)), offsets, is_there


@triton.jit
def maxima_of(values, amax, global_amax, block, exists, view, FORMAT: tl.constexpr):
    """Return the maxima of the blocks, of their values or as calibrated, and those of their tensors, fp32 [blocks]."""
    if FORMAT.dynamic:
        largest = largest_of(values)
    else:
        largest = tl.load(amax + scale_of(block, view), mask=exists, other=1.0)
    if FORMAT.scale == "e4m3":
        largest_of_all = tl.load(global_amax + global_of(block, view), mask=exists, other=1.0)
    else:
        largest_of_all = largest
    return largest, largest_of_all


@triton.jit
def steps_of(values, largest, largest_of_all, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """Return the values in units of their steps, the steps [blocks, 1, 1] and the stored scales [blocks]."""
    step, inverse, stored = scales(largest, largest_of_all, FORMAT)
    step = step[:, None, None]
    return in_steps(values, step, inverse[:, None, None], FORMAT, dtype), step, stored
