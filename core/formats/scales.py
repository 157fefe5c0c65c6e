"""Scales: from the largest magnitude of each block to the stored scale and the step between codes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.core.formats.elements import element_type
from octavo.core.formats.rounding import round_to_grid
from octavo.core.formats.spec import QuantSpec

# Blocks whose amax is smaller count as zero, so that neither max/amax overflows nor amax/max vanishes.
SMALLEST_AMAX = 2.0**-110
E4M3_MAX = 448.0
E4M3_SMALLEST = 2.0**-9
E8M0_BIAS = 127
E8M0_NAN = 255
_ULP = 2.0**-24  # of fp32 mantissas in [0.5, 1), as frexp returns them
SCALE_DTYPES = {"float32": torch.float32, "e4m3": torch.float8_e4m3fn, "e8m0": torch.uint8}


class Scales(NamedTuple):
    """Scales of one tensor.

    Attributes:
        stored: First-level scales as a checkpoint holds them: float32, float8_e4m3fn, or uint8 exponents
            (value 2^(b−127)) for e8m0.
        global_scale: fp32 [] second-level scale ([n] for n stacked tensors), or None.
        step: fp32, shape of `stored`: the value of code 1.
        inverse: fp32 factor that takes values to codes (one level, arithmetic `multiply`), else None.
    """

    stored: Tensor
    global_scale: Tensor | None
    step: Tensor
    inverse: Tensor | None


def scales_from_amax(amax: Tensor, global_amax: Tensor | None, spec: QuantSpec) -> Scales:
    """Return the scales of blocks whose largest magnitudes are `amax`.

    Args:
        amax: fp32, any shape: largest magnitude of each block. A zero block gets the scale 1 (e8m0: 2^−127),
            so that its codes are zero and no reader ever divides by zero. With a float32 scale it may be negative:
            the step is then, and an integer format's longer side lies on the positive values.
        global_amax: fp32 [], or [n] for n stacked tensors: its largest magnitude; used where the spec
            has two levels.
        spec: The format.
    """
    largest = spec.element_type.max
    if spec.scale == "e8m0":
        biased = torch.where(amax == 0, 0, _exponent(amax, spec) + E8M0_BIAS)
        biased = biased.clamp(0, 2 * E8M0_BIAS)
        biased = torch.where(amax.isfinite(), biased, E8M0_NAN)
        return Scales(biased.to(torch.uint8), None, decode_e8m0(biased), None)
    if spec.scale == "e4m3":
        global_scale = global_scale_from_amax(global_amax, spec)
        ratio = amax / (largest * beside(global_scale, amax))
        ratio = torch.where(amax == 0, 1.0, ratio).clamp(E4M3_SMALLEST, E4M3_MAX)
        rounded = round_to_grid(ratio, element_type("e4m3"))
        stored = rounded.to(torch.float8_e4m3fn)
        return Scales(stored, global_scale, rounded * beside(global_scale, amax), None)
    is_zero = amax.abs() < SMALLEST_AMAX
    if spec.arithmetic == "multiply":
        inverse = torch.where(is_zero, 1.0, _inverse(amax, spec))
        return Scales(1.0 / inverse, None, 1.0 / inverse, inverse)
    step = torch.where(is_zero, 1.0, amax / _operand(largest, amax))
    return Scales(step, None, step, None)


def _exponent(amax: Tensor, spec: QuantSpec) -> Tensor:
    """Return the exponent of e8m0 scales, exactly; `ceil`: the smallest e with `largest · 2^e >= amax`."""
    mantissa, exponent = torch.frexp(amax)
    return exponent - math.frexp(spec.element_type.max)[1] + (mantissa > still_down(spec)).int()


def still_down(spec: QuantSpec) -> float:
    """Return the mantissa of an amax, in [0.5, 1), up to which its e8m0 scale is rounded down."""
    if spec.scale_rounding == "ceil":
        return math.frexp(spec.element_type.max)[0]
    return 1 - 2.0 ** -(spec.element_type.mantissa_bits + 2) - _ULP if spec.scale_rounding == "even" else 1.0


def _inverse(amax: Tensor, spec: QuantSpec) -> Tensor:
    # Integer and float kernels of the field round this factor differently; results are compared bit for bit.
    largest = _operand(spec.element_type.max, amax)
    return amax.reciprocal() * largest if spec.element_type.is_float else largest / amax


def global_scale_from_amax(global_amax: Tensor | None, spec: QuantSpec) -> Tensor:
    """Return the fp32 second-level scale; 1 for a tensor of zeros."""
    assert global_amax is not None  # noqa: S101 (spec.state asks for it)
    assert spec.global_max is not None  # noqa: S101
    return torch.where(global_amax < SMALLEST_AMAX, 1.0, global_amax / _operand(spec.global_max, global_amax))


def _operand(number: float, beside: Tensor) -> Tensor:
    """Return `number` as a tensor: torch's CUDA kernels divide by plain numbers with an inexact reciprocal."""
    return torch.tensor(number, dtype=torch.float32, device=beside.device)


def decode_e8m0(stored: Tensor) -> Tensor:
    """Return the fp32 value 2^(b−127) of each stored exponent b; 255 stands for NaN."""
    value = torch.ldexp(torch.ones_like(stored, dtype=torch.float32), stored.int() - E8M0_BIAS)
    return torch.where(stored == E8M0_NAN, torch.nan, value)


def step_from_stored(stored: Tensor, global_scale: Tensor | None, spec: QuantSpec) -> Tensor:
    """Return the step between codes, fp32, from scales as a checkpoint holds them."""
    step = decode_e8m0(stored) if spec.scale == "e8m0" else stored.float()
    return step if global_scale is None else step * beside(global_scale, step)


def beside(global_scale: Tensor, scales: Tensor) -> Tensor:
    """Return second-level scales, [] or one for each of a stack of tensors, as they broadcast over `scales`."""
    return global_scale if global_scale.dim() == 0 else global_scale.reshape(-1, *[1] * (scales.dim() - 1))
