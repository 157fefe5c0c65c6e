"""Activation scales: calibrated maxima as the dialect's `input_scale`, `k_scale` and `v_scale`, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import SMALLEST_AMAX

_CACHE_QUANTIZERS = ("k_bmm_quantizer", "v_bmm_quantizer")
_CACHE_MAX = 448.0


def divisor_of(quantizer: str, spec: QuantSpec) -> float:
    """Return what the dialect divides an activation's maximum by.

    Keys and values are divided by 448 whatever the format of the cache; other activations by the largest value
    that codes and block scales make.
    """
    return _CACHE_MAX if quantizer in _CACHE_QUANTIZERS else spec.global_max or spec.element_type.max


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
        divisor: From `divisor_of`.
    """
    return {spec.state[0]: scale.reshape(()) * divisor}
