"""Every parameter of a model with its format, or the reason why it has none, and its bytes before and after."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from octavo.core.formats import QuantSpec
from octavo.core.formats.packing import packed_length
from octavo.core.model.sharded import whole_shape
from octavo.core.modules import WeightSlot
from octavo.core.plan.plan import TensorPlan
from octavo.core.plan.settings import LayerSetting

_SCALE_BYTES = {"float32": 4, "e4m3": 1, "e8m0": 1}
# What torch's parametrizations and older norms compute a layer's weight from.
_SOURCE_OF_WEIGHT = re.compile(r"(?:weight_(?:g|v|orig)|parametrizations\.weight\.original[01]?)$")


def plan_tensors(
    model: nn.Module, layers: Iterable[LayerSetting], reasons: Mapping[str, str]
) -> Iterator[TensorPlan]:
    """Yield the plan of every parameter, tied ones once.

    Args:
        model: The model, on any device.
        layers: The layers that can be quantized.
        reasons: Why other layers, by name, cannot.
    """
    by_name = {layer.site.name: layer for layer in layers}
    for name, parameter in model.named_parameters():
        layer_name, _, own_name = _SOURCE_OF_WEIGHT.sub("weight", name).rpartition(".")
        layer = by_name.get(layer_name)
        shape = whole_shape(parameter)
        slot = _slot(layer, own_name) if len(shape) > 1 else None
        weight = _specs(layer, slot.quantizer) if slot else ()
        inputs = _specs(layer, slot.inputs) if slot else ()
        reason = "" if weight else _reason(parameter, layer, reasons.get(layer_name))
        after = before = math.prod(shape) * parameter.itemsize
        if layer and slot and weight:
            after = _quantized_bytes(parameter, layer, slot, weight)
        dtype = str(parameter.dtype).removeprefix("torch.")
        yield TensorPlan(name, shape, dtype, weight, inputs, reason, before, after)


def _slot(layer: LayerSetting | None, own_name: str) -> WeightSlot | None:
    slots = () if layer is None else layer.site.quantized.weight_slots()
    return next((slot for slot in slots if slot.parameter == own_name), None)


def _specs(layer: LayerSetting | None, quantizer: str) -> tuple[QuantSpec, ...]:
    return tuple(stage.spec for stage in layer.quantizers.get(quantizer, ())) if layer is not None else ()


def _reason(parameter: Tensor, layer: LayerSetting | None, reason: str | None) -> str:
    if len(whole_shape(parameter)) < 2:
        return "a vector (norm or bias)"
    if layer is not None and layer.reason:
        return layer.reason
    return reason or "no quantizer stands for it"


def _quantized_bytes(
    parameter: Tensor, layer: LayerSetting, slot: WeightSlot, specs: Sequence[QuantSpec]
) -> int:
    site = layer.site
    shape = site.quantized.quantizer_shape(site.layer, slot.quantizer) or whole_shape(parameter)
    codes = math.prod(shape[:-1]) * packed_length(shape[-1], specs[0].element_type.bits)
    scales = [math.prod(spec.granularity.scale_shape(shape)) * _SCALE_BYTES[spec.scale] for spec in specs]
    second = [
        math.prod(spec.state_shape("global_amax", shape)) for spec in specs if spec.global_max is not None
    ]
    return codes + sum(scales) + 4 * sum(second)
