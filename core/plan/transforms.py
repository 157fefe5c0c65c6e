"""Biases and rotations that a config asks for: where they can be, and whether they leave a model what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.core.formats.hadamard import hadamard_block
from octavo.core.plan.named_errors import naming
from octavo.core.plan.sites import Site
from octavo.core.quantizers import Bias, Rotation

if TYPE_CHECKING:
    from octavo.core.config.attributes import QuantizerAttributes

_QUERY, _KEY, _VALUE = _PLACES = ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")
_NUM_DIMS = 4  # of queries, keys and values: batch, heads, tokens, head_dim
_VARYING = {-4, -2}  # batch and tokens


def bias_of(quantizer: str, stages: Sequence[QuantizerAttributes]) -> Bias | None:
    """Return the bias of the quantizer that its layer calls `quantizer`.

    Raises:
        ConfigError: it is wrong, or static and follows dims that vary from call to call.
        UnsupportedError: it is not available there.
    """
    bias = next((found for stage in stages if (found := stage.to_bias()) is not None), None)
    if bias is None:
        return None
    _check_place("bias", quantizer, len(stages))
    if min(bias.axes) < -_NUM_DIMS:
        raise ConfigError(
            f"bias over axis {min(bias.axes)}: queries, keys and values have the axes -4 (batch), -3 (heads), -2 "
            "(tokens) and -1 (channels)"
        )
    if not bias.dynamic and not set(bias.axes) >= _VARYING:
        raise ConfigError(
            f"a static bias over axes {', '.join(map(str, bias.axes))} follows dims that vary from call to call; name "
            "-4 (batch) and -2 (tokens), or use type 'dynamic'"
        )
    return bias


def rotation_of(site: Site, quantizer: str, stages: Sequence[QuantizerAttributes]) -> Rotation | None:
    """Return the rotation of a quantizer of the layer at `site`, on or off.

    Raises:
        ConfigError: it is wrong, or does not fit the shape.
        UnsupportedError: it is not available there.
    """
    with naming(site.quantizer_name(quantizer)):
        rotation = next((found for stage in stages if (found := stage.to_rotation()) is not None), None)
        if rotation is None:
            return None
        _check_place("rotate", quantizer, len(stages))
        shape = site.quantized.quantizer_shape(site.layer, quantizer)
        if shape is not None:
            hadamard_block(shape[-1], rotation.block_size)
        return rotation


def rotation_problem(site: Site, rotations: Mapping[str, Rotation]) -> str:
    """Return why these rotations of one layer's quantizers change what it computes, or an empty string."""
    kept = {name: rotation for name, rotation in rotations.items() if not rotation.back}
    if kept.get(_QUERY) != kept.get(_KEY):
        found = ", ".join(f"{q} {kept.get(q, 'not rotated')}" for q in (_QUERY, _KEY))
        return (
            f"{site.name}: queries and keys keep their products only if both are rotated alike; found {found}. Rotate "
            "both, or back ('mode': 'rotate_back')"
        )
    if _VALUE in kept:
        return f"{site.quantizer_name(_VALUE)}: nothing turns rotated values back; use 'mode': 'rotate_back'"
    return ""


def _check_place(attribute: str, quantizer: str, num_stages: int) -> None:
    if quantizer not in _PLACES:
        raise UnsupportedError(f"{attribute} is available for {', '.join(_PLACES)}, not for {quantizer}")
    if num_stages > 1:
        raise UnsupportedError(f"{attribute} is available for one format, found {num_stages} in turn")
