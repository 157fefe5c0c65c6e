"""Dtypes and bits: what Triton's interpreter and its compiler must do alike."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # decided when Triton was imported


@triton.jit
def bits_of(x):
    """Return the bits of fp32 numbers, int32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def from_bits(bits):
    """Return the fp32 numbers of int32 bits."""
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def with_sign(magnitude, x):
    """Return `magnitude`, which is not negative, with the sign of `x`, also of a zero."""
    return from_bits(bits_of(magnitude) | (bits_of(x) & -0x80000000))


@triton.jit
def widened(x):
    """Return numbers of a floating-point dtype as fp32."""
    if x.dtype == tl.bfloat16 and INTERPRETED:
        # The interpreter makes subnormal numbers zero.
        result = from_bits(x.to(tl.int16, bitcast=True).to(tl.int32) << 16)
    else:
        result = x.to(tl.float32)
    return result


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Return fp32 numbers in `dtype`, rounded to nearest, ties to even."""
    if dtype == tl.bfloat16 and INTERPRETED:
        result = _bfloat16(x)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def _bfloat16(x):
    # The interpreter cuts the bits off instead of rounding.
    bits = bits_of(x)
    nearest = bits + 0x7FFF + ((bits >> 16) & 1)
    kept = tl.where(x == x, nearest, 0x7FC00000) >> 16
    return kept.to(tl.int16).to(tl.bfloat16, bitcast=True)
