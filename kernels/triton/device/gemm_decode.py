"""Inside a product: packed codes and their scales become the weight's values, tile by tile.

A tile of weights is [out, groups, columns of a group]: the columns of a group share a scale. All is 32-bit arithmetic
on bits, exact, the same on every architecture; the one rounding is that of ``code · step`` to fp32 and then to the
dtype of the weight, as in `core.formats.dequantize`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def float_values(codes, mantissa: tl.constexpr, bits: tl.constexpr, unit: tl.constexpr):
    """Return fp32 values of int32 codes of a small float; `unit` is 2^(127 − bias).

    Exponent and mantissa are put where an fp32 number has them, which is the value over `unit`, subnormals included.
    """
    magnitude = codes & ((1 << (bits - 1)) - 1)
    sign = (codes >> (bits - 1)) << 31
    return ((magnitude << (23 - mantissa)) | sign).to(tl.float32, bitcast=True) * unit


@triton.jit
def e4m3_values(codes):
    """Return fp32 values of int32 codes of e4m3, whose largest magnitude is NaN."""
    values = float_values(codes, 3, 8, 1.329227995784916e36)
    return tl.where((codes & 0x7F) == 0x7F, float("nan"), values)


@triton.jit
def code_values(codes, element: tl.constexpr, bits: tl.constexpr):
    """Return fp32 values of int32 codes of `bits` bits: `int` (two's complement), `uint`, `e2m1` or `e4m3`."""
    if element == "e4m3":
        values = e4m3_values(codes)
    elif element == "e2m1":
        values = float_values(codes, 1, 4, 8.507059173023462e37)
    else:
        # Beside 2^23, fp32 numbers are 1 apart: the code is written into the mantissa, its sign bit flipped.
        half: tl.constexpr = (1 << (bits - 1)) if element == "int" else 0
        values = (codes ^ (0x4B000000 + half)).to(tl.float32, bitcast=True) - (8388608.0 + half)
    return values


@triton.jit
def scale_values(stored, kind: tl.constexpr):
    """Return fp32 values of stored scales: fp32, or the uint8 bits of `e4m3` or `e8m0`."""
    if kind == "e4m3":
        values = e4m3_values(stored.to(tl.int32))
    elif kind == "e8m0":
        exponent = stored.to(tl.int32)
        bits = tl.where(exponent == 0, 0x00400000, exponent << 23)  # 2^−127 is subnormal
        values = tl.where(exponent == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)
    else:
        values = stored
    return values


@triton.jit
def rounded(values, weight_dtype: tl.constexpr, dtype: tl.constexpr):
    """Round fp32 values to the dtype of the weight, then to that of the product."""
    return values.to(weight_dtype).to(dtype)


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
    kind: tl.constexpr,
    columns_per_scale: tl.constexpr,
):
    """Return fp32 [out, groups]: what code 1 stands for in the groups that begin at `column`.

    `row` (int64) is the row in the grid of scales, `factor` the second-level scale; columns_per_scale 0: one for a row.
    """
    where = column // columns_per_scale if columns_per_scale > 0 else column * 0
    mask = inside[:, None] & (column < num_in)[None, :]
    stored = tl.load(scale + row[:, None] * scale_columns + where[None, :], mask=mask, other=0)
    return scale_values(stored, kind) * factor


@triton.jit
def half_tiles(codes, steps, element: tl.constexpr, weight_dtype: tl.constexpr, dtype: tl.constexpr):
    """Return the values of the even and of the odd columns of 4-bit codes [out, bytes]: [out, groups, half a group]."""
    shape: tl.constexpr = (steps.shape[0], steps.shape[1], codes.shape[1] // steps.shape[1])
    grouped = tl.reshape(codes, shape)
    even = code_values(grouped & 15, element, 4) * steps[:, :, None]
    odd = code_values(grouped >> 4, element, 4) * steps[:, :, None]
    return rounded(even, weight_dtype, dtype), rounded(odd, weight_dtype, dtype)


@triton.jit
def whole_tile(codes, steps, element: tl.constexpr, weight_dtype: tl.constexpr, dtype: tl.constexpr):
    """Return the values [out, groups, group] of 8-bit codes [out, bytes]."""
    shape: tl.constexpr = (steps.shape[0], steps.shape[1], codes.shape[1] // steps.shape[1])
    return rounded(code_values(tl.reshape(codes, shape), element, 8) * steps[:, :, None], weight_dtype, dtype)
