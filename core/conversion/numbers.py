"""A packed tensor in another dialect's numbers: as it is where the dialect can hold it, else the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from octavo.core.conversion.row_parts import joined_rows, row_parts
from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import step_from_stored
from octavo.core.model.exporter import Dialect
from octavo.core.packed import PackedTensor


def neutral(spec: QuantSpec) -> QuantSpec:
    """Return a format without how a dialect rounds to it, which stored codes do not show."""
    return replace(spec, arithmetic="multiply", ties="even")


def stored_state(packed: PackedTensor, spec: QuantSpec) -> dict[str, Tensor]:
    """Return the state, as `QuantSpec.state` names it, that stands for the scales of `packed` in the format `spec`."""
    if spec.scale == "float32":
        return {"amax": packed.scale * spec.element_type.max}
    if packed.global_scale is None or spec.global_max is None:
        return {}  # exponents, which every dialect holds
    return {"global_amax": packed.global_scale * spec.global_max}


def in_dialect(
    packed: PackedTensor, spec: QuantSpec, dialect: Dialect, shared: Mapping[str, Tensor]
) -> PackedTensor:
    """Return `packed` with scales that `dialect` can hold; codes stay where scales do.

    Args:
        packed: Codes and scales.
        spec: The dialect's format of it (`Dialect.weight_spec`).
        dialect: The dialect.
        shared: State that it shares with other tensors.
    """
    own = stored_state(packed, spec)
    state = dialect.weight_state(spec.unstacked(), {**own, **shared}, packed.dtype)
    if all(torch.equal(state[name], tensor) for name, tensor in own.items()):
        return replace(packed, spec=spec)
    return _rounded_again(packed, spec, state)


def _rounded_again(packed: PackedTensor, spec: QuantSpec, state: Mapping[str, Tensor]) -> PackedTensor:
    """Return the values of `packed` rounded to codes under other scales; those of blocks stay as near as can be."""
    amax = state.get("amax")
    if amax is None:
        amax = step_from_stored(packed.scale, packed.global_scale, packed.spec) * spec.element_type.max
    calibrated = replace(spec, dynamic=False)
    parts = []
    for part, largest in zip(row_parts(packed), row_parts(replace(packed, scale=amax)), strict=True):
        named = {**state, "amax": largest.scale}
        values = part.dequantize(torch.float32)
        parts.append(PackedTensor.pack(values, [named[name] for name in calibrated.state], calibrated))
    return replace(joined_rows(packed, parts), spec=spec, dtype=packed.dtype)
