"""A format as kernels take it: the numbers that they compute with, fixed when they are compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from octavo.core.formats import QuantSpec

_BYTE_FLOATS = ("e4m3", "e5m2")


@dataclass(frozen=True)
class NumberFormat:
    """Constants of one `QuantSpec`, without its granularity.

    Attributes:
        element: Name of the element type.
        bits: Width of a code.
        is_float: Whether codes have exponents.
        keeps_zero_sign: Whether −0 has a code that rounding gives it: in one-byte floats.
        low: Smallest value of a code.
        high: Largest value of a code, which `amax` maps to.
        mantissa: Mantissa bits of a float.
        smallest: Smallest normal number of a float.
        unit: 2^(127 − bias): the value of a float over that of its exponent and mantissa in an fp32 number.
        toward_zero: Whether ties go to the smaller magnitude, and zeros become −0.
        scale: `float32`, `e4m3` or `e8m0`.
        multiplies: Whether values are multiplied by an inverse of the step; else they are divided by it.
        is_native: Whether quotients are rounded to the dtype of the values first.
        dynamic: Whether maxima are those of the values at hand.
        global_max: What the second-level scale maps the tensor's maximum to; 0 without a second level.
        exponent_of_high: Exponent of `high` as frexp gives it.
        last_down: Largest mantissa in [0.5, 1) that still takes the lower power of two for an e8m0 scale.
    """

    element: str
    bits: int
    is_float: bool
    keeps_zero_sign: bool
    low: float
    high: float
    mantissa: int
    smallest: float
    unit: float
    toward_zero: bool
    scale: str
    multiplies: bool
    is_native: bool
    dynamic: bool
    global_max: float
    exponent_of_high: int
    last_down: float

    @property
    def codes_per_group(self) -> int:
        """How many codes fill whole bytes together."""
        return 8 // math.gcd(8, self.bits)


@lru_cache(maxsize=1024)
def number_format(spec: QuantSpec) -> NumberFormat:
    """Return the constants of `spec`."""
    element = spec.element_type
    mantissa_of_high, exponent_of_high = math.frexp(element.max)
    half_a_step, ulp = 2.0 ** -(element.mantissa_bits + 2), 2.0**-24
    last_down = {"ceil": mantissa_of_high, "even": 1 - half_a_step - ulp, "floor": 1.0}
    one_level = spec.scale == "float32"
    return NumberFormat(
        element=element.name,
        bits=element.bits,
        is_float=element.is_float,
        keeps_zero_sign=element.name in _BYTE_FLOATS,
        low=element.min,
        high=element.max,
        mantissa=element.mantissa_bits,
        smallest=2.0**element.smallest_exponent,
        unit=2.0 ** (127 - element.bias),
        toward_zero=spec.ties == "toward_zero",
        scale=spec.scale,
        multiplies=one_level and spec.arithmetic == "multiply",
        is_native=spec.arithmetic == "divide_native",
        dynamic=spec.dynamic,
        global_max=spec.global_max or 0.0,
        exponent_of_high=exponent_of_high,
        last_down=last_down[spec.scale_rounding],
    )
