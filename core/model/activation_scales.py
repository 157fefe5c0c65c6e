"""Activation scales: calibrated maxima as the scales that checkpoints store, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import SMALLEST_AMAX

# What quantizes keys and values; their scales are stored beside attention layers.
CACHE_QUANTIZERS = ("k_bmm_quantizer", "v_bmm_quantizer")


def largest_value(spec: QuantSpec) -> float:
    """Return the largest value that codes and block scales of a format make: dialects divide maxima by it."""
    return spec.global_max or spec.element_type.max


def scale_from_state(state: dict[str, Tensor], divisor: float) -> Tensor:
    """Return the fp32 [] scale that stands for an activation's one state tensor.

    An activation that was always zero gets the scale 1, as in the peer's files: engines divide by it.
    """
    (amax,) = state.values()
    return torch.where(amax < SMALLEST_AMAX, 1.0, amax / divisor).reshape(())


def state_from_scale(scale: Tensor, spec: QuantSpec, divisor: float) -> dict[str, Tensor]:
    """Return the quantizer state whose scale is `scale`: bit for bit, if the scale was made from a maximum.

    Args:
        scale: fp32, one element.
        spec: Format of the activation; it has one state tensor.
        divisor: What the maximum was divided by.
    """
    return {spec.state[0]: scale.reshape(()) * divisor}
