"""Scales of blocks: from the largest magnitude of each to the step between codes; see `core.formats.scales`."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.core.formats import scales as reference
from octavo.kernels.triton.device.grid import decode_float, encode_float, nearest_float
from octavo.kernels.triton.device.numbers import bits_of, from_bits, rounded, widened

_SMALLEST_AMAX = tl.constexpr(reference.SMALLEST_AMAX)
_E4M3_MAX = tl.constexpr(reference.E4M3_MAX)
_E4M3_SMALLEST = tl.constexpr(reference.E4M3_SMALLEST)  # the smallest subnormal number
_E4M3_SMALLEST_NORMAL = tl.constexpr(2.0**-6)
_E4M3_UNIT = tl.constexpr(2.0**120)
_E8M0_NAN = tl.constexpr(reference.E8M0_NAN)
_NAN_BITS = tl.constexpr(0x7FC00000)
_HALF_SMALLEST_NORMAL_BITS = tl.constexpr(0x00400000)  # 2^−127, a subnormal number


@triton.jit
def scales(amax, global_amax, FORMAT: tl.constexpr):
    """Return step, inverse and stored scale of blocks whose largest magnitudes are `amax`.

    `amax` and `global_amax`, that of the tensor of each block, are fp32 of one shape. The
    inverse is 1 where values are divided by the step. The stored scale is fp32, or the int32 code.
    """
    if FORMAT.scale == "e8m0":
        stored = _exponents(amax, FORMAT)
        step, inverse = e8m0_value(stored), e8m0_value(254 - stored)
        inverse = tl.where(stored == _E8M0_NAN, step, inverse)
    elif FORMAT.scale == "e4m3":
        global_max = tl.full(amax.shape, FORMAT.global_max, tl.float32)
        global_scale = tl.where(global_amax < _SMALLEST_AMAX, 1.0, tl.div_rn(global_amax, global_max))
        ratio = tl.where(amax == 0.0, 1.0, tl.div_rn(amax, FORMAT.high * global_scale))
        ratio = tl.where(
            ratio > _E4M3_MAX, _E4M3_MAX, tl.where(ratio < _E4M3_SMALLEST, _E4M3_SMALLEST, ratio)
        )
        scale = nearest_float(ratio, 3, _E4M3_SMALLEST_NORMAL)
        stored = encode_float(scale, 8, 3, _E4M3_UNIT)
        stored = tl.where(scale != scale, 0x7F, stored)
        step = scale * global_scale
        inverse = tl.full(amax.shape, 1.0, tl.float32)
    else:
        step, inverse = _float_steps(amax, FORMAT)
        stored = step
    return step, inverse, stored


@triton.jit
def _float_steps(amax, FORMAT: tl.constexpr):
    is_zero = tl.abs(amax) < _SMALLEST_AMAX
    one = tl.full(amax.shape, 1.0, tl.float32)
    high = tl.full(amax.shape, FORMAT.high, tl.float32)
    if FORMAT.multiplies:
        if FORMAT.is_float:
            inverse = tl.div_rn(one, amax) * FORMAT.high
        else:
            inverse = tl.div_rn(high, amax)
        inverse = tl.where(is_zero, 1.0, inverse)
        step = tl.div_rn(one, inverse)
    else:
        step = tl.where(is_zero, 1.0, tl.div_rn(amax, high))
        inverse = one
    return step, inverse


@triton.jit
def _exponents(amax, FORMAT: tl.constexpr):
    # As frexp: amax = mantissa · 2^exponent with the mantissa in [0.5, 1); subnormal numbers are scaled up first.
    is_small = tl.abs(amax) < _SMALLEST_AMAX
    bits = bits_of(tl.where(is_small, amax * 18446744073709551616.0, amax))  # 2^64
    exponent = ((bits >> 23) & 0xFF) - 126 - tl.where(is_small, 64, 0)
    mantissa = from_bits((bits & -0x7F800001) | 0x3F000000)
    biased = exponent - FORMAT.exponent_of_high + tl.where(mantissa > FORMAT.last_down, 1, 0) + 127
    biased = tl.where(amax == 0.0, 0, tl.minimum(tl.maximum(biased, 0), 254))
    return tl.where((bits_of(amax) & 0x7F800000) == 0x7F800000, _E8M0_NAN, biased)


@triton.jit
def e8m0_value(stored):
    """Return 2^(b−127) of int32 exponents b, fp32; 255 stands for NaN."""
    bits = tl.where(stored == 0, _HALF_SMALLEST_NORMAL_BITS, stored << 23)
    return from_bits(tl.where(stored == _E8M0_NAN, _NAN_BITS, bits))


@triton.jit
def stored_step(stored, global_scale, FORMAT: tl.constexpr):
    """Return the step between codes, fp32, of scales as a checkpoint holds them: fp32 numbers, or uint8 codes."""
    if FORMAT.scale == "e8m0":
        step = e8m0_value(stored.to(tl.int32))
    elif FORMAT.scale == "e4m3":
        codes = stored.to(tl.int32)
        value = decode_float(codes, 8, 3, _E4M3_UNIT)
        step = tl.where((codes & 0x7F) == 0x7F, float("nan"), value) * global_scale
    else:
        step = stored
    return step


@triton.jit
def in_steps(x, step, inverse, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """Return fp32 values in units of their steps; `dtype` is that which they had."""
    if FORMAT.multiplies:
        steps = x * inverse
    else:
        if FORMAT.scale == "e8m0":
            steps = x * inverse  # powers of two: the product is the quotient
        else:
            steps = tl.div_rn(x, tl.broadcast_to(step, x.shape))
        if FORMAT.is_native:
            steps = widened(rounded(steps, dtype))
    return steps
