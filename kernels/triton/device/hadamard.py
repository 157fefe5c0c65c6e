"""The normalized Hadamard transform of a tile; see `core.formats.hadamard`."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.numbers import rounded, widened


@triton.jit
def hadamard(values, TILE: tl.constexpr, LENGTH: tl.constexpr, STEPS: tl.constexpr, dtype: tl.constexpr):
    """Return fp32 [blocks, rows, cols], each `LENGTH` = 2^`STEPS` values in turn transformed and rounded to `dtype`.

    The sums are the reference's, in its order.
    """
    num_values: tl.constexpr = TILE.blocks * TILE.padded_rows * TILE.padded_cols
    sums = values
    for step in tl.static_range(STEPS):
        pairs = tl.reshape(sums, (num_values // (2 << step), 2, 1 << step))
        first, second = tl.split(tl.permute(pairs, (0, 2, 1)))
        sums = tl.permute(tl.join(first + second, first - second), (0, 2, 1))
    sums = tl.reshape(sums, (TILE.blocks, TILE.padded_rows, TILE.padded_cols))
    return widened(rounded(sums * (LENGTH**-0.5), dtype))
