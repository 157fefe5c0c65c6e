"""Rounding fp32 values onto the grid of an element type, and the grid to codes and back."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from octavo.core.formats.elements import ElementType
from octavo.core.formats.spec import Ties

_EXPONENT_BITS = 0x7F800000  # of an fp32 number
NATIVE_FLOATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def round_to_grid(
    x: Tensor, element: ElementType, ties: Ties = "even", scratch: Tensor | None = None
) -> Tensor:
    """Return the value of `element` nearest to each of `x`; beyond the range, its largest.

    Args:
        x: fp32 values in units of the scale, any shape. NaN stays NaN.
        element: The element type.
        ties: `even`: ties go to the even code. `toward_zero`: ties go to the smaller magnitude, and an exact
            zero becomes −0.
        scratch: A tensor like `x` to overwrite on the way, or `x` itself where its values are of no more use.

    Returns:
        fp32 tensor of the same shape. Sub-byte floats store no −0 under `even`, except for values that
        round to it from below.
    """
    if not element.is_float:
        return torch.round(x, out=scratch).clamp_(element.min, element.max).add_(0.0)  # integers have no −0
    x = torch.clamp(x, element.min, element.max, out=scratch)
    is_native = element.name in NATIVE_FLOATS
    if (
        ties == "even" and is_native and x.device.type != "cpu"
    ):  # one kernel there; slower than arithmetic here
        return x.to(NATIVE_FLOATS[element.name]).float()
    if ties == "even":
        return _round_to_even(x if is_native else x.add_(0.0), element)
    quantum = spacing(x, element)
    rounded = x.abs().div_(quantum).sub_(0.5).ceil_().mul_(quantum).copysign_(x)
    return torch.where(x == 0, -0.0, rounded)


def spacing(x: Tensor, element: ElementType) -> Tensor:
    """Return how far apart the values of `element` are around each of `x`.

    Args:
        x: fp32 values in units of the scale, contiguous, any shape.
        element: The element type.
    """
    if not element.is_float:
        return torch.ones_like(x)
    return _exponents(x, element).mul_(2.0**-element.mantissa_bits)


def _round_to_even(x: Tensor, element: ElementType) -> Tensor:
    # Beside 1.5 · 2^23 steps, fp32 numbers are one step apart: adding that rounds, ties to even, for either sign.
    power, large = _exponents(x, element), 1.5 * 2.0 ** (23 - element.mantissa_bits)
    return torch.add(x, power, alpha=large).sub_(power, alpha=large).copysign_(x)


def _exponents(x: Tensor, element: ElementType) -> Tensor:
    """Return 2^⌊log2 |x|⌋, at least that of the smallest normal number of `element`."""
    power = (x.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    return power.clamp_(min=2.0**element.smallest_exponent)


def encode(grid: Tensor, element: ElementType) -> Tensor:
    """Return the code of each grid value, in the low `element.bits` bits of a uint8.

    Floats: sign, exponent, mantissa from the top bit. Signed integers: two's complement.

    Args:
        grid: fp32 values that `round_to_grid` returned. NaN becomes the NaN code where there is one, else 0.
        element: The element type.
    """
    if not element.is_float:
        return grid.to(torch.int16).bitwise_and(2**element.bits - 1).to(torch.uint8)
    if element.name in NATIVE_FLOATS:
        return grid.to(NATIVE_FLOATS[element.name]).view(torch.uint8)
    table = torch.tensor(_codes_by_steps(element), dtype=torch.uint8, device=grid.device)
    steps = (grid.abs() / _code_values(element)[1]).nan_to_num(0.0)
    sign = torch.signbit(grid).to(torch.uint8) << (element.bits - 1)
    return torch.where(grid.isnan(), 0, _looked_up(table, steps) | sign)


def decode(codes: Tensor, element: ElementType) -> Tensor:
    """Return the fp32 value of each code (uint8; bits above `element.bits` must be 0)."""
    if element.name not in NATIVE_FLOATS:
        return _looked_up(
            torch.tensor(_code_values(element), dtype=torch.float32, device=codes.device), codes
        )
    dtype = NATIVE_FLOATS[element.name]
    if codes.device.type != "cpu":  # one kernel there; slower than a table here
        return codes.view(dtype).float()
    return _looked_up(torch.arange(256, dtype=torch.uint8).view(dtype).float(), codes)


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    # With int32 twice as fast as with the int64 that other ways to index take.
    return table.index_select(0, index.flatten().int()).view(index.shape)


@cache
def _code_values(element: ElementType) -> tuple[float, ...]:
    if not element.is_float:
        half = 2 ** (element.bits - 1) if element.min < 0 else 2**element.bits
        return tuple(float(code if code < half else code - 2 * half) for code in range(2**element.bits))
    positive = []
    for code in range(2 ** (element.bits - 1)):
        exponent, mantissa = divmod(code, 2**element.mantissa_bits)
        fraction = mantissa / 2**element.mantissa_bits + (1 if exponent else 0)
        positive.append(fraction * 2.0 ** (max(exponent, 1) - element.bias))
    return (*positive, *(-value for value in positive))


@cache
def _codes_by_steps(element: ElementType) -> tuple[int, ...]:
    """Return the code of each positive multiple of a float's smallest value; 0 where there is none."""
    values = _code_values(element)[: 2 ** (element.bits - 1)]
    codes = {int(value / values[1]): code for code, value in enumerate(values)}
    return tuple(codes.get(steps, 0) for steps in range(max(codes) + 1))
