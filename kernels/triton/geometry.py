"""Which elements share a scale, as kernels walk them: a contiguous tensor as [outer, rows, cols], cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from octavo.core.formats import Granularity, PerBlock, PerChannel, PerTensor, PerToken
from octavo.core.formats.granularity import Stacked

LARGEST_BLOCK = (
    16384  # elements, each length rounded up to a power of two: what one program holds in registers
)
_ROWS_OF_COLUMNS = 32  # that one program reads where neighbouring columns have different scales


@dataclass(frozen=True)
class Geometry:
    """How a tensor is cut into blocks, and which scale each block has.

    Attributes:
        outer, rows, cols: Lengths of the tensor's view; the last block of rows or columns may be cut off.
        block_rows, block_cols: Lengths of a block.
        strides: How far apart the scales are of blocks that are neighbours along outer, rows and cols.
        owns_scales: Whether no two blocks share a scale.
    """

    outer: int
    rows: int
    cols: int
    block_rows: int
    block_cols: int
    strides: tuple[int, int, int]
    owns_scales: bool

    @property
    def row_blocks(self) -> int:
        """Number of blocks along rows."""
        return -(-self.rows // self.block_rows)

    @property
    def col_blocks(self) -> int:
        """Number of blocks along cols."""
        return -(-self.cols // self.block_cols)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.outer * self.row_blocks * self.col_blocks


@lru_cache(maxsize=4096)
def geometry(
    granularity: Granularity, shape: tuple[int, ...], tile: int, whole: bool = False
) -> Geometry | None:
    """Return how kernels cut a tensor of `shape`, which is not empty, or None where they cannot.

    Args:
        granularity: Which elements share a scale.
        shape: At least one dim.
        tile: Elements that one program is to read, a power of two: blocks of a scale that many elements share.
        whole: Where a scale is that of a row of the view and `LARGEST_BLOCK` holds the row, make it one block.
    """
    stack = 1
    if isinstance(granularity, Stacked):
        granularity, stack, shape = granularity.each, shape[0], shape[1:]
        if not shape:
            return None
    if isinstance(granularity, PerBlock):
        return _blocks(granularity, stack, shape)
    lengths = _lengths(granularity, stack, shape)
    if lengths is None:
        return None
    outer, rows, cols, strides = lengths
    if strides[2]:
        return Geometry(outer, rows, cols, min(_ROWS_OF_COLUMNS, power_of_two(rows)), 1, strides, False)
    if (
        whole
        and power_of_two(cols) <= LARGEST_BLOCK
        and (rows == 1 or strides[1])
        and (outer == 1 or strides[0])
    ):
        return Geometry(outer, rows, cols, 1, cols, strides, True)
    return Geometry(outer, rows, cols, 1, min(tile, max(8, power_of_two(cols))), strides, False)


def power_of_two(length: int) -> int:
    """Return the smallest power of two that is at least `length`."""
    return 1 << (length - 1).bit_length()


def _lengths(
    granularity: PerTensor | PerChannel | PerToken, stack: int, shape: Sequence[int]
) -> tuple[int, int, int, tuple[int, int, int]] | None:
    """Return outer, rows, cols and the strides of scales along them."""
    if isinstance(granularity, PerTensor):
        return stack, 1, math.prod(shape), (1, 0, 0)
    if isinstance(granularity, PerToken):
        rows = math.prod(shape[:-1])
        return stack, rows, shape[-1], (rows, 1, 0)
    if not -len(shape) <= granularity.axis < len(shape):
        return None
    axis = granularity.axis % len(shape)
    before, channels, after = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    if after == 1:
        return stack, before, channels, (channels, 0, 1)
    if stack == 1:
        return before, channels, after, (0, 1, 0)
    return (stack, channels, after, (channels, 1, 0)) if before == 1 else None


def _blocks(granularity: PerBlock, stack: int, shape: Sequence[int]) -> Geometry | None:
    sizes = dict(granularity.sizes)
    block_rows, block_cols = sizes.pop(-2, 1), sizes.pop(-1, 1)
    if sizes or power_of_two(block_rows) * power_of_two(block_cols) > LARGEST_BLOCK:
        return None
    if block_rows == 1:
        outer, rows = stack, math.prod(shape[:-1])
    elif len(shape) > 1:
        outer, rows = stack * math.prod(shape[:-2]), shape[-2]
    else:
        return None
    row_blocks, col_blocks = -(-rows // block_rows), -(-shape[-1] // block_cols)
    strides = (row_blocks * col_blocks, col_blocks, 1)
    return Geometry(outer, rows, shape[-1], block_rows, block_cols, strides, True)


class View(NamedTuple):
    """A geometry as kernels take it, in numbers that differ from call to call."""

    num_blocks: int
    rows: int
    cols: int
    row_blocks: int
    col_blocks: int
    outer_stride: int
    row_stride: int
    col_stride: int
    outer_per_global: int  # how many of outer share a second-level scale
    row_bytes: int  # packed codes of a row of the view


@dataclass(frozen=True)
class Tile:
    """A geometry as kernels take it, in numbers for which they are compiled.

    Attributes:
        blocks: How many blocks one program works on.
        rows, cols: Lengths of a block.
        padded_rows, padded_cols: The same, rounded up to powers of two.
        owns_scales: Whether no two blocks share a scale.
        is_wide: Whether offsets need 64 bits.
    """

    blocks: int
    rows: int
    cols: int
    padded_rows: int
    padded_cols: int
    owns_scales: bool
    is_wide: bool
