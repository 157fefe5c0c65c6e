"""Scales of quantized inputs under the dialect's names, and back."""

from __future__ import annotations

from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.model.activation_scales import largest_value, scale_from_state, state_from_scale
from octavo.exporters.compressed_tensors.divisors import divisor


def input_scale_name(spec: QuantSpec) -> str:
    """Return the suffix of the tensor that holds the scale of a static input."""
    return "input_scale" if spec.global_max is None else "input_global_scale"


def spell_input(spec: QuantSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return {suffix: fp32 [1]} of a static input: its scale, or the divisor of its block scales."""
    scale = scale_from_state(state, largest_value(spec))
    return {input_scale_name(spec): (scale if spec.global_max is None else divisor(scale)).reshape(1)}


def unspell_input(spec: QuantSpec, stored: Tensor) -> dict[str, Tensor]:
    """Return the quantizer state of what `spell_input` returned, fp32 of one element."""
    return state_from_scale(stored if spec.global_max is None else divisor(stored), spec, largest_value(spec))
