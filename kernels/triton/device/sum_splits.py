"""Sum of the partial products of splits, always in the same order."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.numbers import rounded


@triton.jit(do_not_specialize=["size", "splits"])
def sum_splits_kernel(partial, out, size, splits, BLOCK: tl.constexpr):
    """Store the sums of fp32 `partial` [splits, size] over its splits, rounded once to the dtype of `out` [size]."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(partial + tl.cast(split, tl.int64) * size + place, mask=inside, other=0.0)
    tl.store(out + place, rounded(total, out.dtype.element_ty), mask=inside)
