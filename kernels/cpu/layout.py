"""Which elements share a scale, as the compiled code takes it: lengths of dims and of the blocks along them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from octavo.core.formats.granularity import (
    Granularity,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    Stacked,
)

MAX_DIMS = 8
PIECE, SET = 8192, 65536  # elements, of layout.h


class CLayout(ctypes.Structure):
    """`Layout` of layout.h."""

    _fields_ = (
        ("num_dims", ctypes.c_int64),
        ("lengths", ctypes.c_int64 * MAX_DIMS),
        ("blocks", ctypes.c_int64 * MAX_DIMS),
    )


@dataclass(frozen=True, eq=False)
class Layout:
    """How the elements of a contiguous tensor without empty dims share scales.

    Attributes:
        compiled: The same for the compiled code.
        num_scales: How many scales there are.
        num_stacked: How many tensors are stacked, each with consecutive scales; 1 for one that is no stack.
        fits_cache: Whether each block is small enough to be read twice from the cache.
    """

    compiled: CLayout
    num_scales: int
    num_stacked: int
    fits_cache: bool


@lru_cache(maxsize=1024)
def layout_of(granularity: Granularity, shape: tuple[int, ...]) -> Layout | None:
    """Return the layout of a tensor of `shape`; None where it has more dims than the compiled code takes.

    Raises:
        ShapeError: the granularity does not fit the shape.
    """
    num_scales = math.prod(granularity.scale_shape(shape))
    dims = list(zip(shape, _block_lengths(granularity, shape), strict=True))
    is_stack = isinstance(granularity, Stacked)
    merged = [*dims[:is_stack], *_merged(dims[is_stack:])]
    if len(merged) > MAX_DIMS:
        return None
    compiled = CLayout(len(merged))
    for d, (length, block) in enumerate(merged):
        compiled.lengths[d], compiled.blocks[d] = length, block
    fits_cache = merged[-1][1] <= PIECE and math.prod(block for _, block in merged) <= SET
    return Layout(compiled, num_scales, shape[0] if is_stack else 1, fits_cache)


def _block_lengths(granularity: Granularity, shape: Sequence[int]) -> list[int]:
    """Return the length of the blocks along each dim of `shape`, at most its length."""
    match granularity:
        case PerTensor():
            return list(shape)
        case PerChannel(axis=axis):
            return [1 if d == axis % len(shape) else n for d, n in enumerate(shape)]
        case PerToken():
            return [*[1] * (len(shape) - 1), *shape[-1:]]
        case PerBlock(sizes=sizes):
            lengths = {axis % len(shape): length for axis, length in sizes}
            return [min(lengths.get(d, 1), n) for d, n in enumerate(shape)]
        case Stacked(each=each):
            return [1, *_block_lengths(each, shape[1:])]


def _merged(dims: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge neighbouring dims where blocks of the merged one are the same elements; at least one dim is left."""
    merged = [(1, 1)]
    for length, block in dims:
        outer_length, outer_block = merged[-1]
        is_whole_inside = block == length  # so blocks of rows are blocks of all their elements
        is_single_outside = outer_block == 1 and length % block == 0
        if is_whole_inside:
            merged[-1] = (outer_length * length, outer_block * block)
        elif is_single_outside:
            merged[-1] = (outer_length * length, block)
        else:
            merged.append((length, block))
    return merged
