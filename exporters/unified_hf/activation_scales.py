"""What the dialect divides activations' maxima by to get `input_scale`, `k_scale` and `v_scale`."""

from __future__ import annotations

from octavo.core.formats import QuantSpec
from octavo.core.model.activation_scales import (
    CACHE_QUANTIZERS,
    largest_value,
    scale_from_state,
    state_from_scale,
)

__all__ = ["divisor_of", "scale_from_state", "state_from_scale"]

_CACHE_MAX = 448.0


def divisor_of(quantizer: str, spec: QuantSpec) -> float:
    """Return what the dialect divides an activation's maximum by.

    Keys and values are divided by 448 whatever the format of the cache; other activations by the largest value
    that codes and block scales make.
    """
    return _CACHE_MAX if quantizer in CACHE_QUANTIZERS else largest_value(spec)
