"""The attributes that mean a format: `QuantizerAttributes.to_spec` the other way round."""

from __future__ import annotations

from typing import Any

from octavo.core.config.attributes import FOUR_OVER_SIX_MAX
from octavo.core.config.rules import Attributes
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec, element_type

_SCALE_BITS = {"e4m3": (4, 3), "e8m0": (8, 0)}


def spec_attributes(spec: QuantSpec) -> Attributes:
    """Return attributes whose `to_spec` is `spec`, so that others can be merged into them.

    Args:
        spec: A format that a config made; a dialect's own arithmetic (see `finalize`) has no attributes.
    """
    attributes = _element_attributes(spec.element)
    options: dict[str, Any] = {"scale_bits": _SCALE_BITS[spec.scale]} if spec.scale in _SCALE_BITS else {}
    if spec.global_max == spec.element_type.max * FOUR_OVER_SIX_MAX:
        options["four_over_six"] = True
    if spec.scale_rounding != "ceil":
        options["scale_rounding"] = spec.scale_rounding
    match spec.granularity:
        case PerChannel(axis):
            attributes["axis"] = axis
        case PerToken():
            attributes["block_sizes"] = {-1: None, **options}
        case PerBlock(sizes):
            attributes["block_sizes"] = {**dict(sizes), **options}
    if spec.dynamic:
        attributes["type"] = "dynamic"
    return attributes


def _element_attributes(name: str) -> Attributes:
    element = element_type(name)
    if element.is_float:
        return {"num_bits": name}
    attributes: Attributes = {"num_bits": element.bits}
    if name.startswith("u"):
        attributes["unsigned"] = True
    if name.endswith("_narrow"):
        attributes["narrow_range"] = True
    return attributes
