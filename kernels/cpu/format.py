"""Number formats as the compiled code takes them."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache

from octavo.core.formats import QuantSpec
from octavo.core.formats.rounding import NATIVE_FLOATS
from octavo.core.formats.scales import still_down

_ROUNDINGS = {"integer": 0, "even": 1, "even without -0": 2, "toward_zero": 3}
_ARITHMETICS = {"multiply": 0, "divide": 1, "divide_native": 2}
_SCALES = {"float32": 0, "e4m3": 1, "e8m0": 2}
_NAN_CODE = 0x7F  # of the formats that have one


class CFormat(ctypes.Structure):
    """`Format` of format.h.

    Fields: the range of codes; the smallest normal number; what is added
    to a number, in units of its power of two, to round it; how far apart numbers are, in the same units; the
    mantissa up to which an e8m0 scale is rounded down; numbers of the choices above; bits of the codes; the
    code of NaN, 0 for none; the exponent of the largest number as `frexp` has it.
    """

    _fields_ = (
        *((name, ctypes.c_float) for name in ("min", "max", "smallest_normal", "large", "spacing")),
        ("still_down", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("rounding", "arithmetic", "scale", "is_float", "bits")),
        *((name, ctypes.c_int32) for name in ("mantissa_bits", "bias", "nan_code", "largest_exponent")),
    )


@lru_cache(maxsize=1024)
def format_of(spec: QuantSpec) -> CFormat:
    """Return the format of `spec` for the compiled code."""
    element = spec.element_type
    is_native = element.name in NATIVE_FLOATS
    rounding: str = spec.ties if element.is_float else "integer"
    if rounding == "even" and not is_native:
        rounding = "even without -0"
    # Scales that are rounded themselves are divided by. To multiply by the inverse of a power of two is the same.
    arithmetic = spec.arithmetic
    if spec.scale != "float32" and arithmetic != "divide_native":
        arithmetic = "multiply" if spec.scale == "e8m0" else "divide"
    return CFormat(
        min=element.min,
        max=element.max,
        smallest_normal=2.0**element.smallest_exponent,
        large=1.5 * 2.0 ** (23 - element.mantissa_bits),
        spacing=2.0**-element.mantissa_bits,
        still_down=still_down(spec),
        rounding=_ROUNDINGS[rounding],
        arithmetic=_ARITHMETICS[arithmetic],
        scale=_SCALES[spec.scale],
        is_float=element.is_float,
        bits=element.bits,
        mantissa_bits=element.mantissa_bits,
        bias=element.bias,
        nan_code=_NAN_CODE if is_native else 0,
        largest_exponent=math.frexp(element.max)[1],
    )
