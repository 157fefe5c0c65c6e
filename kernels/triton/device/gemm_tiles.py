"""Parts of products: tiles of packed codes and their scales become the weight's values, and are multiplied.

A tile of weights is [out, groups, columns of a group]: the columns of a group share a scale. Codes and scales are
exact in fp32; the one rounding is that of ``code · step`` to fp32 and then to the dtype of the weight, as in
`core.formats.dequantize`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.grid import decode
from octavo.kernels.triton.device.numbers import INTERPRETED, from_bits, rounded
from octavo.kernels.triton.device.scales import stored_step

_BESIDE = tl.constexpr(0x4B000000)  # the bits of 2^23, beside which fp32 numbers are 1 apart


@triton.jit
def byte_tile(payload, row, inside, start, row_bytes, length: tl.constexpr):
    """Return int32 [out, length]: bytes of weight rows `row` (int64) from byte `start` on, 0 past their end."""
    place = start + tl.arange(0, length)
    mask = inside[:, None] & (place < row_bytes)[None, :]
    return tl.load(payload + row[:, None] * row_bytes + place[None, :], mask=mask, other=0).to(tl.int32)


@triton.jit
def step_tile(
    scale,
    factor,
    row,
    inside,
    column,
    num_in,
    scale_columns,
    FORMAT: tl.constexpr,
    COLUMNS_PER_SCALE: tl.constexpr,
):
    """Return fp32 [out, groups]: what code 1 stands for in the groups that begin at `column`.

    `row` (int64) is the row in the grid of scales, `factor` the second-level scale; COLUMNS_PER_SCALE 0: one for a row.
    """
    where = column // COLUMNS_PER_SCALE if COLUMNS_PER_SCALE > 0 else column * 0
    mask = inside[:, None] & (column < num_in)[None, :]
    stored = tl.load(scale + row[:, None] * scale_columns + where[None, :], mask=mask, other=0)
    return stored_step(stored, factor, FORMAT)


@triton.jit
def weight_tile(codes, steps, FORMAT: tl.constexpr, WEIGHT: tl.constexpr, DTYPE: tl.constexpr):
    """Return values [out, in] of codes [out, bytes], rounded to the dtype WEIGHT and then to DTYPE."""
    groups: tl.constexpr = (steps.shape[0], steps.shape[1], codes.shape[1] // steps.shape[1])
    columns: tl.constexpr = (codes.shape[0], codes.shape[1] * 8 // FORMAT.bits)
    grouped = tl.reshape(codes, groups)
    if FORMAT.bits == 4:
        even = _values(grouped & 15, steps, FORMAT, WEIGHT, DTYPE)
        values = tl.join(even, _values(grouped >> 4, steps, FORMAT, WEIGHT, DTYPE))
    else:
        values = _values(grouped, steps, FORMAT, WEIGHT, DTYPE)
    return tl.reshape(values, columns)


@triton.jit
def _values(codes, steps, FORMAT: tl.constexpr, WEIGHT: tl.constexpr, DTYPE: tl.constexpr):
    if FORMAT.is_float:
        values = decode(codes, FORMAT)
    else:
        # Written into the mantissa beside 2^23, sign bit flipped: conversions of integers are slower.
        half: tl.constexpr = (1 << (FORMAT.bits - 1)) if FORMAT.low < 0 else 0
        values = from_bits(codes ^ (_BESIDE + half)) - (8388608.0 + half)
    return rounded(values * steps[:, :, None], WEIGHT).to(DTYPE)


@triton.jit
def multiply_add(x, weight, acc):
    """Return acc + x · weightᵀ, in int32 of int8 codes, else in fp32.

    Of sums of FP8 products Hopper's tensor cores keep few bits: those of 128 columns are added up outside of them.
    """
    if acc.dtype == tl.int32:
        acc = tl.dot(x, tl.trans(weight), acc, out_dtype=tl.int32)
    elif INTERPRETED:  # which multiplies the bits of bf16 and FP8 as integers
        acc = tl.dot(x.to(tl.float32), tl.trans(weight.to(tl.float32)), acc)
    elif x.dtype == tl.float8e4nv:
        acc = tl.dot(x, tl.trans(weight), acc, max_num_imprecise_acc=128)
    else:
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
    return acc


@triton.jit
def tile_of(row_blocks, num_out, BLOCK_OUT: tl.constexpr):
    """Return this program's block of rows, and its rows of the weight, int64 both, with which of these there are.

    Neighbouring programs share rows or weights, so that these are still in the cache.
    """
    program, out_blocks = tl.program_id(0), tl.cdiv(num_out, BLOCK_OUT)
    out_block, row_block = tl.swizzle2d(
        program // row_blocks, program % row_blocks, out_blocks, row_blocks, 8
    )
    n = out_block.to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    return row_block.to(tl.int64), n, n < num_out


@triton.jit
def store_tile(out, total, bias, bias_place, rows, row, row_inside, num_out, n, inside):
    """Store fp32 `total` of rows and columns `n` in `out` [splits, rows, out]; the first split adds the bias."""
    split = tl.program_id(1)
    if bias is not None:
        addend = tl.load(bias + bias_place, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(split == 0, addend, 0.0)[None, :]
    target = out + (split.to(tl.int64) * rows + row)[:, None] * num_out + n[None, :]
    tl.store(target, rounded(total, out.dtype.element_ty), mask=row_inside[:, None] & inside[None, :])
