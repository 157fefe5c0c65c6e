"""The grid of an element type: rounding onto it, its codes and their values; see `core.formats.rounding`."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.numbers import bits_of, from_bits, with_sign

_EXPONENT = tl.constexpr(0x7F800000)  # its bits in an fp32 number


@triton.jit
def to_grid(x, FORMAT: tl.constexpr):
    """Return the value of the element type nearest to each of `x`, fp32; beyond the range, its last."""
    x = tl.where(x > FORMAT.high, FORMAT.high, tl.where(x < FORMAT.low, FORMAT.low, x))  # NaN stays
    if not FORMAT.is_float:
        # Beside 1.5 · 2^23, fp32 numbers are 1 apart: adding that rounds, ties to even, and leaves no −0.
        grid = (x + 12582912.0) - 12582912.0
    elif FORMAT.toward_zero:
        quantum = float_exponents(x, FORMAT.smallest) * (2.0**-FORMAT.mantissa)
        away = tl.ceil(tl.div_rn(tl.abs(x), quantum) - 0.5) * quantum
        grid = tl.where(x == 0.0, -0.0, with_sign(tl.abs(away), x))
    elif FORMAT.keeps_zero_sign:
        grid = nearest_float(x, FORMAT.mantissa, FORMAT.smallest)
    else:
        grid = nearest_float(tl.where(x == 0.0, 0.0, x), FORMAT.mantissa, FORMAT.smallest)
    return grid


@triton.jit
def float_exponents(x, smallest: tl.constexpr):
    """Return 2^⌊log2 |x|⌋, at least `smallest`; infinity for NaN."""
    powers = from_bits(bits_of(x) & _EXPONENT)
    return tl.where(powers < smallest, smallest, powers)


@triton.jit
def nearest_float(x, mantissa: tl.constexpr, smallest: tl.constexpr):
    """Return the nearest number of `mantissa` bits, ties to even, with the sign of `x`, also of a zero."""
    large = float_exponents(x, smallest) * (1.5 * 2.0 ** (23 - mantissa))
    return with_sign(tl.abs((x + large) - large), x)


@triton.jit
def encode(grid, FORMAT: tl.constexpr):
    """Return the code of each value of the grid, int32; NaN becomes the NaN code where there is one, else 0."""
    is_nan = grid != grid
    if not FORMAT.is_float:
        codes = tl.where(is_nan, 0.0, grid).to(tl.int32) & ((1 << FORMAT.bits) - 1)
    else:
        codes = encode_float(grid, FORMAT.bits, FORMAT.mantissa, FORMAT.unit)
        if FORMAT.bits == 8:
            codes = tl.where(is_nan, 0x7F | (codes & 0x80), codes)
        else:
            codes = tl.where(is_nan, 0, codes)
    return codes


@triton.jit
def encode_float(grid, bits: tl.constexpr, mantissa: tl.constexpr, unit: tl.constexpr):
    """Return sign, exponent and mantissa of grid values as int32 codes of `bits` bits."""
    # Over `unit`, which is a power of two, exponent and mantissa stand where an fp32 number has them.
    magnitude = bits_of(tl.abs(grid) * (1.0 / unit)) >> (23 - mantissa)
    return magnitude | ((bits_of(grid) >> (32 - bits)) & (1 << (bits - 1)))


@triton.jit
def decode(codes, FORMAT: tl.constexpr):
    """Return the fp32 value of each int32 code."""
    if FORMAT.is_float:
        values = decode_float(codes, FORMAT.bits, FORMAT.mantissa, FORMAT.unit)
        if FORMAT.element == "e4m3":
            values = tl.where((codes & 0x7F) == 0x7F, float("nan"), values)
        elif FORMAT.element == "e5m2":
            infinite = from_bits(((codes & 0x80) << 24) | _EXPONENT)
            values = tl.where((codes & 0x7F) == 0x7C, infinite, values)
            values = tl.where((codes & 0x7F) > 0x7C, float("nan"), values)
    elif FORMAT.low < 0:
        half: tl.constexpr = 1 << (FORMAT.bits - 1)
        values = ((codes ^ half) - half).to(tl.float32)
    else:
        values = codes.to(tl.float32)
    return values


@triton.jit
def decode_float(codes, bits: tl.constexpr, mantissa: tl.constexpr, unit: tl.constexpr):
    """Return the finite fp32 values of sign, exponent and mantissa in int32 codes of `bits` bits."""
    half: tl.constexpr = 1 << (bits - 1)
    magnitude = from_bits((codes & (half - 1)) << (23 - mantissa)) * unit
    return with_sign(magnitude, from_bits((codes & half) << (32 - bits)))
