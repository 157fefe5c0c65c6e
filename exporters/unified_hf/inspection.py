"""What a quantized model holds that this dialect can store; the rest is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from octavo.core.calibration.finalize import folded_layers
from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.errors import ExportError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.serving import active_specs, check_exportable
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modules import (
    QuantAttention,
    QuantConvolution,
    QuantEmbedding,
    QuantModule,
    original_class,
    quantized_layers,
)
from octavo.exporters.unified_hf.caches import CACHES, NVFP4_AFFINE, cache_name, stored_quantizers
from octavo.exporters.unified_hf.schemes import Scheme, scheme_for, schemes


@dataclass(frozen=True)
class ExportableModel:
    """The quantized parts of a model, by module name.

    Attributes:
        weights: Quantized weights by the parameter's name.
        schemes: Their formats, by the same names.
        attention: Attention layers that have a quantizer on.
        kv: Format of keys and values, or None.
        has_bias: Whether biases are subtracted from keys and values.
    """

    weights: dict[str, StoredWeight]
    schemes: dict[str, Scheme]
    attention: dict[str, QuantAttention]
    kv: QuantSpec | None
    has_bias: bool = False


def inspect_model(model: nn.Module) -> ExportableModel:
    """Collect what is to be written.

    Raises:
        ModeError: the model is not quantized, or its weights are folded.
        ExportError: a static quantizer was never calibrated, a layer has no place in this dialect, nothing is
            quantized, or the model was itself read from a quantized checkpoint. The layers are named.
    """
    check_exportable(model)
    weights: dict[str, StoredWeight] = {}
    found: dict[str, Scheme] = {}
    attention, problems, others = {}, [], []
    folded = folded_layers(model)
    for name, layer in quantized_layers(model):
        if not active_specs(layer):
            continue
        if isinstance(layer, QuantAttention):
            attention[name] = layer
        elif not layer.quantized_weights():  # a norm or pooling: `export_warnings` speaks of it
            continue
        elif isinstance(layer, (QuantConvolution, QuantEmbedding)):
            others.append(f"{name} ({original_class(layer).__name__})")
        elif (stored := _stored_weights(name, layer, name in folded)) is not None:
            weights |= {weight.name: weight for weight, _ in stored}
            found |= {weight.name: scheme for weight, scheme in stored}
        else:
            problems.append(f"{name} ({_shown(layer)})")
    if others:
        raise ExportError(
            f"this dialect stores quantized linear layers only; found {listed(others, 3)}. Leave these layers out "
            "({'quantizer_name': '*', 'parent_class': 'nn.Conv2d', 'enable': False}, say), or keep the model with "
            "octavo.save"
        )
    if problems:
        known = ", ".join(dict.fromkeys(scheme.quant_algo for scheme in schemes()))
        raise ExportError(
            f"{len(problems)} layers have formats that this dialect cannot store: {listed(problems, 3)}. "
            f"It stores {known}"
        )
    _check_stacks(weights, found)
    _check_int4_rows(weight for weight in weights.values() if found[weight.name].weight.element == "int4")
    kv = _kv_format(attention)
    if not weights and kv is None:
        raise ExportError("no quantizer is on that a checkpoint stores; save_pretrained writes a plain model")
    return ExportableModel(weights, found, attention, kv, _has_bias(attention))


def _check_stacks(weights: dict[str, StoredWeight], found: dict[str, Scheme]) -> None:
    """Refuse formats that have no form for experts in one tensor."""
    unknown = [n for n, w in weights.items() if w.is_in_one_tensor and found[n].stored_stack is None]
    if unknown:
        known = ", ".join(scheme.quant_algo for scheme in schemes() if scheme.stored_stack is not None)
        raise ExportError(
            f"checkpoints hold the experts of {listed(unknown, 2)} in one tensor, stored in this dialect as {known}; "
            f"found {listed(sorted({found[name].quant_algo for name in unknown}))}. Leave the experts out "
            "({'quantizer_name': '*.experts.*', 'enable': False}), or use another format"
        )


def _check_int4_rows(weights: Iterable[StoredWeight]) -> None:
    rows = {weight.layer_name: weight.shape[-2] for weight in weights}
    odd = [f"{name} ({number} rows)" for name, number in rows.items() if number % 2]
    if odd:
        raise ExportError(
            f"INT4 weights are stored in pairs of rows, and the number of rows is odd in {listed(odd)}; leave them out"
        )


def _stored_weights(
    name: str, layer: QuantModule, was_folded: bool
) -> list[tuple[StoredWeight, Scheme]] | None:
    """Return the quantized weights of a layer, or None if the dialect has no place for what is on.

    `was_folded` says that its input had a `pre_quant_scale`, which the model is finalized without.
    """
    specs, stored = active_specs(layer), []
    chains = {q for q, quantizer in layer.quantizers().items() if len(quantizer.stages()) > 1}
    storable = {slot.quantizer for slot in layer.weight_slots() if not slot.is_stacked}
    if any(q not in storable or len(specs.get(q, ())) != 2 for q in chains):
        return None
    for slot in layer.weight_slots():
        weight, inputs = specs.get(slot.quantizer, []), specs.get(slot.inputs, [])
        if not weight and not inputs:
            continue
        layer_format = format_of(layer, slot)
        if layer_format is not None and was_folded:
            layer_format = replace(layer_format, smoothing="scaled")
        scheme = None if layer_format is None else scheme_for(layer_format)
        if scheme is None:
            return None
        stored.append((StoredWeight(name, layer, slot), scheme))
    return stored or None


def _shown(layer: QuantModule) -> str:
    return ", ".join(
        f"{name} {' then '.join(map(str, chain))}" for name, chain in active_specs(layer).items()
    )


def _kv_format(attention: dict[str, QuantAttention]) -> QuantSpec | None:
    formats: dict[QuantSpec, list[str]] = {}
    alone = []
    for name, layer in attention.items():
        chains = {q: chain for q, chain in active_specs(layer).items() if q in stored_quantizers(layer)}
        if len(chains) == 1:
            alone.append(f"{name}.{next(iter(chains))}")
        for quantizer, chain in chains.items():
            for spec in chain:
                formats.setdefault(spec, []).append(f"{name}.{quantizer}")
    if len(formats) > 1 or any(cache_name(spec) is None for spec in formats):
        known = " or ".join(dict.fromkeys(map(str, CACHES.values())))
        found = "; ".join(f"{spec} at {listed(names, 2)}" for spec, names in formats.items())
        raise ExportError(f"the KV cache of a checkpoint has one format, {known}; found {found}")
    if alone:
        raise ExportError(
            f"a checkpoint's cache has quantized keys and values or neither, and {listed(alone, 2)} are on alone; "
            "quantize both"
        )
    return next(iter(formats), None)


def _has_bias(attention: dict[str, QuantAttention]) -> bool:
    """Return whether the cache has biases: all of it or nothing."""
    stages = {
        f"{name}.{quantizer}": layer.quantizers()[quantizer].stages()[0]
        for name, layer in attention.items()
        for quantizer in stored_quantizers(layer)
    }
    biased = [name for name, stage in stages.items() if stage.enabled and stage.bias is not None]
    plain = [name for name, stage in stages.items() if stage.enabled and stage.bias is None]
    if biased and plain:
        raise ExportError(
            f"a checkpoint's cache has biases of all keys and values or of none ({NVFP4_AFFINE}); found one at "
            f"{listed(biased, 2)} and none at {listed(plain, 2)}"
        )
    return bool(biased)
