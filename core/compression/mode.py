"""The mode `compress`: how packed weights are described, and restored on a plain model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from octavo.core.calibration.finalized import (
    FINALIZATION,
    LastingFinalization,
    forget_finalization,
    lasting_finalization,
)
from octavo.core.errors import ModeError
from octavo.core.modes.record import part
from octavo.core.modules import (
    PackedParameter,
    QuantModule,
    WeightSlot,
    hold_dense,
    hold_packed,
    packed_layers,
    packed_slots,
)
from octavo.core.plugins import plugins

COMPRESS = "compress"
_DENSE = "_octavo_dense_parameters"  # {slot: parameter} of a layer, from restoring until all of it succeeded
_WHERE = "the record of mode 'compress'"


class CompressMode:
    """Packed weights; codes and scales travel in the model's state dict, formats and shapes in the record."""

    name = COMPRESS
    version = 1

    def describe(self, model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record's state as the model is now."""
        lasting = lasting_finalization(model)
        return {
            "finalized": None if lasting is None else lasting.to_json(),
            "layers": {
                name: {slot.parameter: weight.describe() for slot, weight in packed_slots(layer)}
                for name, layer in packed_layers(model)
            },
        }

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Make room for codes and scales where the state describes them.

        Raises:
            CheckpointError: the state is damaged.
            ModeError: the model has no such layer, or its layer no such weight.
        """
        described = part(state, "layers", dict, _WHERE)
        for layer, slot, data, where in [*_described(model, described)]:
            parameter = layer.get_parameter(slot.parameter)
            weight = PackedParameter.from_description(data, parameter.device, where)
            layer.__dict__.setdefault(_DENSE, {})[slot] = parameter
            hold_packed(layer, slot, weight)
        if state.get("finalized") is not None:
            finalized = part(state, "finalized", dict, _WHERE)
            model.__dict__[FINALIZATION] = LastingFinalization.from_json(finalized, f"{_WHERE}: finalized")

    def commit(self, model: nn.Module) -> None:
        """Let the dense parameters go that restoring replaced, and the framework know."""
        for _, layer in packed_layers(model):
            layer.__dict__.pop(_DENSE, None)
        plugins().weights_packed(model)

    def undo(self, model: nn.Module) -> None:
        """Put the dense parameters back that restoring replaced."""
        for _, layer in [*packed_layers(model)]:
            for slot, parameter in layer.__dict__.pop(_DENSE, {}).items():
                hold_dense(layer, slot, parameter)
        forget_finalization(model)


def _described(
    model: nn.Module, described: Mapping[str, Any]
) -> Iterator[tuple[QuantModule, WeightSlot, Mapping[str, Any], str]]:
    """Yield each layer, weight, its description and what messages call it."""
    modules = dict(model.named_modules())
    for name in described:
        layer = modules.get(name)
        if not isinstance(layer, QuantModule):
            raise ModeError(
                f"{_WHERE} has packed weights of {name!r}; this {type(model).__name__} has no such quantized layer"
            )
        slots = {slot.parameter: slot for slot in layer.weight_slots()}
        weights = part(described, name, dict, _WHERE)
        for parameter in weights:
            if parameter not in slots:
                raise ModeError(
                    f"{_WHERE} has a packed {parameter!r} of {name!r}, whose weights are {', '.join(slots) or 'none'}"
                )
            yield (
                layer,
                slots[parameter],
                part(weights, parameter, dict, _WHERE),
                f"{_WHERE}: {name}.{parameter}",
            )
