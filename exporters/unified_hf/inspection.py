"""What a quantized model holds that this dialect can store; the rest is refused by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from octavo.core.errors import ExportError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import LayerFormat
from octavo.core.model.serving import active_specs, check_exportable
from octavo.core.modules import QuantAttention, QuantModule, quantized_layers
from octavo.exporters.unified_hf.caches import CACHES, cache_name
from octavo.exporters.unified_hf.schemes import Scheme, scheme_for, schemes


@dataclass(frozen=True)
class ExportableModel:
    """The quantized parts of a model, by module name.

    Attributes:
        layers: Layers with their scheme.
        attention: Attention layers that have a quantizer on.
        kv: Format of keys and values, or None.
    """

    layers: dict[str, tuple[QuantModule, Scheme]]
    attention: dict[str, QuantAttention]
    kv: QuantSpec | None


def inspect_model(model: nn.Module) -> ExportableModel:
    """Collect what is to be written.

    Raises:
        ModeError: the model is not quantized.
        ExportError: a static quantizer was never calibrated, a layer has no place in this dialect, nothing is
            quantized, or the model was itself read from a quantized checkpoint. The layers are named.
    """
    check_exportable(model)
    layers, attention, problems = {}, {}, []
    for name, layer in quantized_layers(model):
        if not active_specs(layer):
            continue
        if isinstance(layer, QuantAttention):
            attention[name] = layer
        elif (scheme := _scheme(layer)) is not None:
            layers[name] = (layer, scheme)
        else:
            problems.append(f"{name} ({_shown(layer)})")
    if problems:
        known = ", ".join(dict.fromkeys(scheme.quant_algo for scheme in schemes()))
        raise ExportError(
            f"{len(problems)} layers have formats that this dialect cannot store: {listed(problems, 3)}. "
            f"It stores {known}"
        )
    _check_int4_rows(layers)
    kv = _kv_format(attention)
    if not layers and kv is None:
        raise ExportError("no quantizer is on that a checkpoint stores; save_pretrained writes a plain model")
    return ExportableModel(layers, attention, kv)


def _check_int4_rows(layers: dict[str, tuple[QuantModule, Scheme]]) -> None:
    rows = {
        name: layer.quantized_weights()["weight_quantizer"].shape[0]
        for name, (layer, scheme) in layers.items()
        if scheme.weight.element == "int4"
    }
    odd = [f"{name} ({number} rows)" for name, number in rows.items() if number % 2]
    if odd:
        raise ExportError(
            f"INT4 weights are stored in pairs of rows, and the number of rows is odd in {listed(odd)}; leave them out"
        )


def _scheme(layer: QuantModule) -> Scheme | None:
    specs = active_specs(layer)
    weight, inputs = specs.get("weight_quantizer", []), specs.get("input_quantizer", [])
    if not weight or any(len(quantizer.stages()) > 1 for quantizer in layer.quantizers().values()):
        return None
    return scheme_for(LayerFormat(weight[0], inputs[0] if inputs else None))


def _shown(layer: QuantModule) -> str:
    return ", ".join(
        f"{name} {' then '.join(map(str, chain))}" for name, chain in active_specs(layer).items()
    )


def _kv_format(attention: dict[str, QuantAttention]) -> QuantSpec | None:
    formats: dict[QuantSpec, list[str]] = {}
    alone = []
    for name, layer in attention.items():
        chains = {q: chain for q, chain in active_specs(layer).items() if q != "q_bmm_quantizer"}
        if len(chains) == 1:
            alone.append(f"{name}.{next(iter(chains))}")
        for quantizer, chain in chains.items():
            for spec in chain:
                formats.setdefault(spec, []).append(f"{name}.{quantizer}")
    if len(formats) > 1 or any(cache_name(spec) is None for spec in formats):
        known = " or ".join(map(str, CACHES.values()))
        found = "; ".join(f"{spec} at {listed(names, 2)}" for spec, names in formats.items())
        raise ExportError(f"the KV cache of a checkpoint has one format, {known}; found {found}")
    if alone:
        raise ExportError(
            f"a checkpoint's cache has quantized keys and values or neither, and {listed(alone, 2)} are on alone; "
            "quantize both"
        )
    return next(iter(formats), None)
