"""What a quantized model holds that this dialect can store; the rest is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.errors import ExportError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.plain_caches import check_plain_caches
from octavo.core.model.serving import active_specs, check_exportable
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modes.record import last_record
from octavo.core.modules import (
    QuantAttention,
    QuantConvolution,
    QuantEmbedding,
    QuantModule,
    quantized_layers,
)
from octavo.core.plugins import plugins
from octavo.exporters.tensorrt_llm.caches import CACHE_QUANTIZERS, CACHES, cache_name
from octavo.exporters.tensorrt_llm.formats import Format, format_for, formats


@dataclass(frozen=True)
class QuantizedParts:
    """The quantized parts of a model.

    Attributes:
        weights: Quantized weights by the parameter's name; none of a model that is not quantized.
        cache: Name of the format of keys and values, or None.
    """

    weights: dict[str, StoredWeight] = field(default_factory=dict)
    cache: str | None = None


def inspect_model(model: nn.Module, for_reader: bool) -> QuantizedParts:
    """Collect what is to be written; a model that is not quantized is written as it is.

    Args:
        model: The model.
        for_reader: Whether the engine builder's reader is to take it.

    Raises:
        ModeError: its weights are folded.
        ExportError: a static quantizer was never calibrated, a layer or the cache has a format that has no place in
            this dialect, or the model was itself read from a quantized checkpoint. The layers are named.
    """
    if last_record(model, "quantize") is None:
        return QuantizedParts()
    check_exportable(model)
    weights: dict[str, StoredWeight] = {}
    attention: dict[str, QuantAttention] = {}
    problems = []
    for name, layer in quantized_layers(model):
        if not active_specs(layer):
            continue
        if isinstance(layer, QuantAttention):
            attention[name] = layer
        elif layer.quantized_weights():
            found = _stored_weights(name, layer, for_reader)
            problems += [] if found else [f"{name} ({_shown(layer, for_reader)})"]
            weights |= {weight.name: weight for weight in found}
    if problems:
        known = ", ".join(each.quant_algo for each in formats())
        raise ExportError(
            f"{len(problems)} layers have formats that TensorRT-LLM checkpoints cannot store: {listed(problems, 3)}. "
            f"Linear layers are stored as {known}; export_hf_checkpoint stores more"
        )
    check_plain_caches(attention, "TensorRT-LLM")
    return QuantizedParts(weights, _cache(model, attention))


def _stored_weights(name: str, layer: QuantModule, for_reader: bool) -> list[StoredWeight]:
    """Return the quantized weights of a layer; none if the dialect has no place for what is on."""
    specs, stored = active_specs(layer), []
    if isinstance(layer, (QuantConvolution, QuantEmbedding)):
        return []
    for slot in layer.weight_slots():
        if slot.quantizer not in specs and slot.inputs not in specs:
            continue
        known = _format(layer, StoredWeight(name, layer, slot))
        if known is None or (slot.is_stacked and not known.stores_experts(for_reader)):
            return []
        stored.append(StoredWeight(name, layer, slot))
    return stored


def _format(layer: QuantModule, weight: StoredWeight) -> Format | None:
    chains = active_specs(layer)
    if len(chains.get(weight.slot.quantizer, ())) > 2 or len(chains.get(weight.slot.inputs, ())) > 1:
        return None
    return format_for(format_of(layer, weight.slot))


def _shown(layer: QuantModule, for_reader: bool) -> str:
    chains = active_specs(layer).items()
    shown = ", ".join(f"{name} {' then '.join(map(str, chain))}" for name, chain in chains)
    is_stack = any(slot.is_stacked for slot in layer.weight_slots())
    taken = ", ".join(known.quant_algo for known in formats() if known.stores_experts(for_reader))
    return f"{shown}; of experts, readers take {taken}" if is_stack else shown


def _cache(model: nn.Module, attention: dict[str, QuantAttention]) -> str | None:
    """Return the name of the format that all layers' keys and values have, or None when none are quantized."""
    found: dict[QuantSpec, list[str]] = {}
    quantized = []
    for name, layer in attention.items():
        for quantizer in CACHE_QUANTIZERS:
            for spec in active_specs(layer).get(quantizer, ()):
                found.setdefault(spec, []).append(f"{name}.{quantizer}")
                quantized.append(f"{name}.{quantizer}")
    if not found:
        return None
    names = [
        f"{name}.{quantizer}" for name in plugins().attention_layers(model) for quantizer in CACHE_QUANTIZERS
    ]
    plain = [name for name in names if name not in quantized]
    if len(found) > 1 or cache_name(next(iter(found))) is None:
        shown = "; ".join(f"{spec} at {listed(places, 2)}" for spec, places in found.items())
        raise ExportError(
            f"the KV cache of a checkpoint has one format, {' or '.join(map(str, CACHES.values()))}; found {shown}"
        )
    if plain:
        raise ExportError(
            f"readers expect scales of keys and values of every layer or of none, and {listed(plain, 2)} are off; "
            "quantize both everywhere, or disable '*[kv]_bmm_quantizer'"
        )
    return cache_name(next(iter(found)))
