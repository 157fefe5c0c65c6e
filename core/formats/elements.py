"""Element types: what one code of a quantized tensor can be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from octavo.core.errors import ConfigError, nearest

# name -> (exponent bits, mantissa bits, exponent bias, largest finite magnitude)
_FLOATS = {
    "e4m3": (4, 3, 7, 448.0),  # OCP FP8, the "fn" variant: no infinity, one NaN code
    "e5m2": (5, 2, 15, 57344.0),  # OCP FP8, IEEE-like: infinities and NaNs
    "e2m1": (2, 1, 1, 6.0),  # OCP FP4
    "e3m2": (3, 2, 3, 28.0),  # OCP FP6
    "e2m3": (2, 3, 1, 7.5),  # OCP FP6
}
_INTEGER = re.compile(r"(u?)int([2-8])(_narrow)?")


@dataclass(frozen=True)
class ElementType:
    """One number format for codes, without scale.

    Attributes:
        name: `int8`, `int4`, `uint4`, `int8_narrow`, `e4m3`, `e5m2`, `e2m1`, `e3m2`, `e2m3`, …
        bits: Width of a code.
        min: Smallest code value (−128 for int8, −6 for e2m1).
        max: Code value that `amax` maps to (127 for int8, 448 for e4m3); values saturate there.
        exponent_bits: 0 for integers.
        mantissa_bits: 0 for integers.
        bias: Exponent bias; 0 for integers.
    """

    name: str
    bits: int
    min: float
    max: float
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0

    @property
    def is_float(self) -> bool:
        """Whether codes are floating point (sign, exponent, mantissa)."""
        return self.exponent_bits > 0

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest normal number, which subnormals share."""
        return 1 - self.bias


@cache
def element_type(name: str) -> ElementType:
    """Return the element type called `name`.

    Names: the floats of the OCP MX specification v1.0 (`e4m3`, `e5m2`, `e2m1`, `e3m2`, `e2m3`) and
    `int2` … `int8`, with `u` before for unsigned and `_narrow` after for a symmetric range.

    Raises:
        ConfigError: no element type has that name.
    """
    if name in _FLOATS:
        exponent, mantissa, bias, largest = _FLOATS[name]
        return ElementType(name, 1 + exponent + mantissa, -largest, largest, exponent, mantissa, bias)
    match = _INTEGER.fullmatch(name)
    if match is None:
        known = [*_FLOATS, "int8", "int4"]
        raise ConfigError(
            f"unknown element type {name!r}; known: {', '.join(_FLOATS)}, int2 to int8, uint2 to uint8, "
            f"each integer also with _narrow.{nearest(name, known)}"
        )
    unsigned, bits, narrow = bool(match[1]), int(match[2]), bool(match[3])
    if unsigned:
        return ElementType(name, bits, 0.0, float(2**bits - 1))
    largest = 2.0 ** (bits - 1) - 1
    return ElementType(name, bits, -largest if narrow else -largest - 1, largest)
