"""Parts of products: tiles of packed codes and their scales become the weight's values, and are multiplied.

A tile of weights is [out, groups, columns of a group]: the columns of a group share a scale. Codes and scales are
exact in fp32; the one rounding is that of ``code · step`` to fp32 and then to the dtype of the weight, as in
`core.formats.dequantize`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.grid import decode
from octavo.kernels.triton.device.numbers import INTERPRETED, from_bits, rounded, widened
from octavo.kernels.triton.device.scales import stored_step

_BESIDE = tl.constexpr(0x4B000000)  # the bits of 2^23, beside which fp32 numbers are 1 apart
_SIGN = tl.constexpr(-0x80000000)


@triton.jit
def unit_tile(payload, row, inside, start, row_units, LENGTH: tl.constexpr):
    """Return int32 [out, LENGTH]: units of weight rows `row` (int64) from number `start` on, 0 past their end.

    A unit is what `payload` points to: a byte, or a word of four of them.
    """
    place = start + tl.arange(0, LENGTH)
    mask = inside[:, None] & (place < row_units)[None, :]
    return tl.load(payload + row[:, None] * row_units + place[None, :], mask=mask, other=0).to(tl.int32)


@triton.jit
def step_tile(
    stored,
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
    codes = tl.load(stored + row[:, None] * scale_columns + where[None, :], mask=mask, other=0)
    return stored_step(codes, factor, FORMAT)


@triton.jit
def weight_tile(
    units, steps, FORMAT: tl.constexpr, PER_UNIT: tl.constexpr, FP8: tl.constexpr, DTYPES: tl.constexpr
):
    """Return values [out, in] of units [out, units] of PER_UNIT codes, rounded to each of DTYPES in turn.

    FP8 says that the device converts e4m3 itself.
    """
    groups: tl.constexpr = (steps.shape[0], steps.shape[1], units.shape[1] // steps.shape[1])
    grouped, step = tl.reshape(units, groups), steps[:, :, None]
    # The last dim that is joined counts neighbours: code 4a + 2b + c of a unit comes to [a, b, c].
    if PER_UNIT == 1:
        values = _values(grouped, step, 0, FORMAT, FP8, DTYPES)
    elif PER_UNIT == 2:
        values = _pair(grouped, step, 0, 1, FORMAT, DTYPES)
    elif PER_UNIT == 4:
        even = _pair(grouped, step, 0, 2, FORMAT, DTYPES)
        values = tl.join(even, _pair(grouped, step, 1, 3, FORMAT, DTYPES))
    else:
        even = tl.join(_pair(grouped, step, 0, 4, FORMAT, DTYPES), _pair(grouped, step, 2, 6, FORMAT, DTYPES))
        odd = tl.join(_pair(grouped, step, 1, 5, FORMAT, DTYPES), _pair(grouped, step, 3, 7, FORMAT, DTYPES))
        values = tl.join(even, odd)
    return tl.reshape(values, (units.shape[0], units.shape[1] * PER_UNIT))


@triton.jit
def _pair(units, step, FIRST: tl.constexpr, SECOND: tl.constexpr, FORMAT: tl.constexpr, DTYPES: tl.constexpr):
    first = _values(units, step, FIRST, FORMAT, False, DTYPES)
    return tl.join(first, _values(units, step, SECOND, FORMAT, False, DTYPES))


@triton.jit
def _values(units, step, PLACE: tl.constexpr, FORMAT: tl.constexpr, FP8: tl.constexpr, DTYPES: tl.constexpr):
    """Return the values of code number PLACE of each unit, in few instructions: they are what a product waits for."""
    if FP8:
        values = units.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32)
    elif not FORMAT.is_float:
        values = _integers(units, PLACE * FORMAT.bits, FORMAT)
    elif FORMAT.bits == 4:
        values = _small_floats(units, PLACE * FORMAT.bits, FORMAT)
    else:
        values = decode((units >> (PLACE * FORMAT.bits)) & 0xFF, FORMAT)
    return rounded(values * step, DTYPES[0]).to(DTYPES[1])


@triton.jit
def _integers(units, SHIFT: tl.constexpr, FORMAT: tl.constexpr):
    # Written into the mantissa beside 2^23, the sign bit flipped, and shifted down by a product, which is exact.
    shift: tl.constexpr = SHIFT % 16
    half: tl.constexpr = (1 << (FORMAT.bits - 1)) << shift if FORMAT.low < 0 else 0
    mask: tl.constexpr = ((1 << FORMAT.bits) - 1) << shift
    beside = from_bits(((units >> (SHIFT - shift)) & mask) ^ (_BESIDE + half))
    unit: tl.constexpr = 1.0 / (1 << shift)
    return tl.fma(beside, unit, -(8388608.0 + half) * unit)


@triton.jit
def _small_floats(units, SHIFT: tl.constexpr, FORMAT: tl.constexpr):
    # Exponent and mantissa are moved to where an fp32 number has them.
    up: tl.constexpr = 23 - FORMAT.mantissa - SHIFT
    moved = units << up if up >= 0 else units >> -up
    magnitude: tl.constexpr = ((1 << (FORMAT.bits - 1)) - 1) << (23 - FORMAT.mantissa)
    sign = (units << (32 - FORMAT.bits - SHIFT)) & _SIGN
    return from_bits(sign | (moved & magnitude)) * FORMAT.unit


@triton.jit
def multiply_add(x, weight, acc):
    """Return acc + x · weightᵀ, in int32 of int8 codes, else in fp32.

    Of sums of FP8 products Hopper's tensor cores keep few bits: those of 128 columns are added up outside of them.
    """
    if acc.dtype == tl.int32:
        acc = tl.dot(x, tl.trans(weight), acc, out_dtype=tl.int32)
    elif INTERPRETED:  # which multiplies the bits of bf16 and FP8 as integers
        acc = tl.dot(widened(x), tl.trans(widened(weight)), acc)
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
