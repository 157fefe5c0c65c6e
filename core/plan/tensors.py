"""Every parameter of a model with its format, or the reason why it has none, and its bytes before and after."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from octavo.core.formats import QuantSpec
from octavo.core.formats.packing import packed_length
from octavo.core.plan.plan import TensorPlan
from octavo.core.plan.settings import LayerSetting

_SCALE_BYTES = {"float32": 4, "e4m3": 1, "e8m0": 1}
# A layer's weight, or what torch's parametrizations and older norms compute it from.
_WEIGHT = re.compile(
    r"(?:(?P<layer>.*)\.)?(?:weight(?:_g|_v|_orig)?|parametrizations\.weight\.original[01]?)"
)


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
        match = _WEIGHT.fullmatch(name) if parameter.dim() > 1 else None
        layer = None if match is None else by_name.get(match["layer"] or "")
        weight, inputs = _specs(layer, "weight_quantizer"), _specs(layer, "input_quantizer")
        reason = "" if weight else _reason(parameter, layer, reasons.get(name.rpartition(".")[0]))
        after = _quantized_bytes(parameter, layer, weight) if layer and weight else parameter.nbytes
        dtype = str(parameter.dtype).removeprefix("torch.")
        yield TensorPlan(name, tuple(parameter.shape), dtype, weight, inputs, reason, parameter.nbytes, after)


def _specs(layer: LayerSetting | None, quantizer: str) -> tuple[QuantSpec, ...]:
    return tuple(stage.spec for stage in layer.quantizers.get(quantizer, ())) if layer is not None else ()


def _reason(parameter: Tensor, layer: LayerSetting | None, reason: str | None) -> str:
    if parameter.dim() < 2:
        return "a vector (norm or bias)"
    if layer is not None and layer.reason:
        return layer.reason
    return reason or "no quantizer stands for it"


def _quantized_bytes(parameter: Tensor, layer: LayerSetting, specs: Sequence[QuantSpec]) -> int:
    site = layer.site
    shape = site.quantized.quantizer_shape(site.layer, "weight_quantizer") or tuple(parameter.shape)
    codes = math.prod(shape[:-1]) * packed_length(shape[-1], specs[0].element_type.bits)
    scales = [math.prod(spec.granularity.scale_shape(shape)) * _SCALE_BYTES[spec.scale] for spec in specs]
    return codes + sum(scales) + 4 * sum(spec.global_max is not None for spec in specs)
