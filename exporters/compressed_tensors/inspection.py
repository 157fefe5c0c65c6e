"""What a quantized model holds that this dialect can store; the rest is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from octavo.core.errors import ExportError
from octavo.core.formats import QuantSpec
from octavo.core.model.activation_scales import CACHE_QUANTIZERS
from octavo.core.model.exporter import LayerFormat
from octavo.core.model.plain_caches import check_plain_caches
from octavo.core.model.serving import active_specs, check_exportable
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modules import QuantAttention, QuantEmbedding, QuantModule, quantized_layers
from octavo.exporters.compressed_tensors.dialect import CompressedTensorsDialect
from octavo.exporters.compressed_tensors.formats import Format, format_for
from octavo.exporters.compressed_tensors.metadata import FP8_CACHE


@dataclass(frozen=True)
class ExportableModel:
    """The quantized parts of a model.

    Attributes:
        weights: Quantized weights by the parameter's name.
        formats: Their formats, by the same names.
        attention: Attention layers whose keys and values are quantized, by name.
    """

    weights: dict[str, StoredWeight]
    formats: dict[str, tuple[LayerFormat, Format]]
    attention: dict[str, QuantAttention]


def inspect_model(model: nn.Module) -> ExportableModel:
    """Collect what is to be written.

    Raises:
        ModeError: the model is not quantized.
        ExportError: a quantizer was never calibrated, or a layer has no place in this dialect; layers are named.
    """
    check_exportable(model)
    parts = ExportableModel({}, {}, {})
    for name, layer in quantized_layers(model):
        specs = active_specs(layer)
        if isinstance(layer, QuantAttention):
            _add_attention(parts, name, layer, specs)
            continue
        for slot in layer.weight_slots():
            weight, inputs = specs.pop(slot.quantizer, []), specs.pop(slot.inputs, [])
            if not weight and not inputs:
                continue
            if len(weight) != 1 or len(inputs) > 1:
                raise _unstored(name, layer)
            stored = StoredWeight(name, layer, slot)
            _check_shape(stored)
            layer_format = LayerFormat(weight[0].unstacked(), inputs[0] if inputs else None)
            parts.weights[stored.name] = stored
            parts.formats[stored.name] = layer_format, _format_of(layer_format, name)
        if any(CompressedTensorsDialect().has_place_for(layer, quantizer) for quantizer in specs):
            raise _unstored(name, layer)
    if not parts.weights:
        raise ExportError(
            "this dialect is written for models with quantized weights of linear layers; found none"
        )
    return parts


def _add_attention(
    parts: ExportableModel, name: str, layer: QuantAttention, specs: Mapping[str, list[QuantSpec]]
) -> None:
    check_plain_caches({name: layer}, "compressed-tensors")
    chains = {quantizer: specs[quantizer] for quantizer in CACHE_QUANTIZERS if quantizer in specs}
    if not chains:
        return
    if chains != {quantizer: [FP8_CACHE] for quantizer in CACHE_QUANTIZERS}:
        found = {quantizer: list(map(str, chain)) for quantizer, chain in chains.items()}
        raise ExportError(
            f"{name}: this dialect is written with a cache of {FP8_CACHE} for keys and values both; found {found}"
        )
    parts.attention[name] = layer


def _format_of(layer_format: LayerFormat, name: str) -> Format:
    known = format_for(layer_format)
    if known is None:
        raise ExportError(
            f"compressed-tensors checkpoints of weights {layer_format.weight}, inputs {layer_format.inputs} are not "
            f"written, found in {name}; export_hf_checkpoint without a target stores more formats"
        )
    return known


def _unstored(name: str, layer: QuantModule) -> ExportError:
    return ExportError(
        f"{name}: this dialect is written for a weight and perhaps its input, of one format each; found "
        f"{ {q: list(map(str, chain)) for q, chain in active_specs(layer).items()} }"
    )


def _check_shape(weight: StoredWeight) -> None:
    shape = weight.shape
    if len(shape) != (3 if weight.slot.is_stacked else 2) or isinstance(weight.layer, QuantEmbedding):
        raise ExportError(
            f"{weight.layer_name}: this dialect stores linear layers' weights of two dims, found shape {shape}; "
            "leave it out"
        )
