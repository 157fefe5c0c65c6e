"""The part of a tensor that one program works on: a few blocks, each [rows, cols]; see `triton.geometry`.

`view` and `TILE` are `geometry.View` and `geometry.Tile`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def blocks_of(view, TILE: tl.constexpr):
    """Return the numbers of this program's blocks, [blocks], and which of them there are; int64 if need be."""
    program = tl.program_id(0)
    if TILE.is_wide:
        program = program.to(tl.int64)
    block = program * TILE.blocks + tl.arange(0, TILE.blocks)
    return block, block < view.num_blocks


@triton.jit
def place_of(block, view):
    """Return the position of each block along outer, rows and cols."""
    per_outer = view.row_blocks * view.col_blocks
    rest = block % per_outer
    return block // per_outer, rest // view.col_blocks, rest % view.col_blocks


@triton.jit
def rows_of(block, exists, view, TILE: tl.constexpr):
    """Return the number, in the whole view, of each row of each block, [blocks, rows, 1], and which there are."""
    outer, row_block, _ = place_of(block, view)
    within = tl.arange(0, TILE.padded_rows)[None, :, None]
    row = row_block[:, None, None] * TILE.rows + within
    has_row = exists[:, None, None] & (within < TILE.rows) & (row < view.rows)
    return outer[:, None, None] * view.rows + row, has_row


@triton.jit
def elements_of(block, exists, view, TILE: tl.constexpr):
    """Return the offset of each element of each block, [blocks, rows, cols], and which there are."""
    row, has_row = rows_of(block, exists, view, TILE)
    _, _, col_block = place_of(block, view)
    within = tl.arange(0, TILE.padded_cols)[None, None, :]
    col = col_block[:, None, None] * TILE.cols + within
    return row * view.cols + col, has_row & (within < TILE.cols) & (col < view.cols)


@triton.jit
def scale_of(block, view):
    """Return the index of the scale of each block."""
    outer, row_block, col_block = place_of(block, view)
    return outer * view.outer_stride + row_block * view.row_stride + col_block * view.col_stride


@triton.jit
def global_of(block, view):
    """Return the index of the second-level scale of each block."""
    outer, _, _ = place_of(block, view)
    return outer // view.outer_per_global


@triton.jit
def largest_of(values):
    """Return the largest magnitude of each block, fp32 [blocks]; NaN where there is one."""
    # Bits of numbers without a sign are ordered as the numbers, NaN last.
    magnitudes = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(tl.max(magnitudes, axis=2), axis=1).to(tl.float32, bitcast=True)
