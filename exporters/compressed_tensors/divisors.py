"""Divisors: the dialect stores second-level scales as their reciprocals, which not every number has exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.formats.scales import SMALLEST_AMAX

_TRIES = 3  # of maxima one last bit apart; tried for every fp32 mantissa


def divisor(scale: Tensor) -> Tensor:
    """Return what is stored for a second-level scale, its reciprocal in fp32; or the scale of what is stored."""
    return 1.0 / scale


def stored_maximum(amax: Tensor, largest: float) -> Tensor:
    """Return a maximum at most three last bits from `amax` that readers recover bit for bit.

    Readers take the reciprocal of the stored divisor for the scale, and `largest` times the scale for the maximum.

    Args:
        amax: fp32, any shape: largest magnitudes of whole tensors.
        largest: What the scale is multiplied with to be the maximum (`QuantSpec.global_max`).
    """
    for _ in range(_TRIES):
        found = divisor(divisor(_scale(amax, largest))) * largest
        amax = torch.where(_is_stored(found, largest), found, _next(amax))
    return amax


def _scale(amax: Tensor, largest: float) -> Tensor:
    return torch.where(amax < SMALLEST_AMAX, 1.0, amax / largest)


def _is_stored(amax: Tensor, largest: float) -> Tensor:
    scale = _scale(amax, largest)
    return (divisor(divisor(scale)) == scale) & (scale * largest == amax)


def _next(amax: Tensor) -> Tensor:
    return torch.nextafter(amax, torch.full_like(amax, torch.inf))
