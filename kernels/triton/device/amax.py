"""The kernel that finds the largest magnitude of each block."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.blocks import values_of
from octavo.kernels.triton.device.numbers import bits_of
from octavo.kernels.triton.device.tile import blocks_of, largest_of, scale_of


@triton.jit
def amax_kernel(result, x, view, TILE: tl.constexpr):
    """Store the bits of `core.formats.compute_amax(x)`, int32; `result` holds zeros where blocks share scales."""
    block, exists = blocks_of(view, TILE)
    values, _, _ = values_of(x, block, exists, view, TILE)
    largest = bits_of(largest_of(values))
    if TILE.owns_scales:
        tl.store(result + scale_of(block, view), largest, mask=exists)
    else:
        tl.atomic_max(result + scale_of(block, view), largest, mask=exists, sem="relaxed")
