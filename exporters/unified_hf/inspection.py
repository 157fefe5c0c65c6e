"""What a quantized model holds that this dialect can store, and what it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from octavo.core.calibration.max import uncalibrated
from octavo.core.errors import ExportError, ModeError, listed
from octavo.core.formats import PerBlock, PerTensor, QuantSpec
from octavo.core.model.exporter import LayerFormat
from octavo.core.modes.record import last_record
from octavo.core.modules import QuantAttention, QuantModule, quantized_layers
from octavo.exporters.unified_hf.schemes import Scheme, scheme_for, schemes

FP8_KV = QuantSpec("e4m3", PerTensor())
NVFP4_KV = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)


@dataclass(frozen=True)
class ExportableModel:
    """The quantized parts of a model, by module name.

    Attributes:
        layers: Layers with their scheme.
        attention: Attention layers whose keys and values are quantized.
        kv: Format of keys and values, or None.
        warnings: What the checkpoint will not hold.
    """

    layers: dict[str, tuple[QuantModule, Scheme]]
    attention: dict[str, QuantAttention]
    kv: QuantSpec | None
    warnings: list[str]


def inspect_model(model: nn.Module) -> ExportableModel:
    """Collect what is to be written.

    Raises:
        ModeError: the model is not quantized.
        ExportError: a static quantizer was never calibrated, or a format has no place in this dialect; the
            layers are named.
    """
    if last_record(model, "quantize") is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    waiting = [name for name, _ in uncalibrated(model)]
    if waiting:
        raise ExportError(
            f"{len(waiting)} quantizers were never calibrated: {listed(waiting)}; run octavo.calibrate with data first"
        )
    layers, attention, problems = {}, {}, []
    for name, layer in quantized_layers(model):
        scheme = None if isinstance(layer, QuantAttention) else _scheme(layer)
        if isinstance(layer, QuantAttention):
            attention[name] = layer
        elif scheme is not None:
            layers[name] = (layer, scheme)
        else:
            problems.append(f"{name} ({_active_specs(layer)})")
    if problems:
        known = ", ".join(dict.fromkeys(scheme.quant_algo for scheme in schemes()))
        raise ExportError(
            f"{len(problems)} layers have formats that this dialect cannot store: {listed(problems, 3)}. "
            f"It stores {known}"
        )
    kv = _kv_format(attention)
    return ExportableModel(layers, attention, kv, _warnings(layers, attention, kv))


def _scheme(layer: QuantModule) -> Scheme | None:
    specs = _active_specs(layer)
    weight, inputs = specs.get("weight_quantizer", []), specs.get("input_quantizer", [])
    if len(weight) != 1 or len(inputs) > 1:
        return None
    return scheme_for(LayerFormat(weight[0], inputs[0] if inputs else None))


def _active_specs(layer: QuantModule) -> dict[str, list[QuantSpec]]:
    specs = {
        name: [stage.spec for stage in quantizer.stages() if stage.enabled and stage.spec is not None]
        for name, quantizer in layer.quantizers().items()
    }
    return {name: chain for name, chain in specs.items() if chain}


def _kv_format(attention: dict[str, QuantAttention]) -> QuantSpec | None:
    formats: dict[QuantSpec, list[str]] = {}
    for name, layer in attention.items():
        specs = _active_specs(layer)
        for quantizer in ("k_bmm_quantizer", "v_bmm_quantizer"):
            chain: Sequence[QuantSpec | None] = specs.get(quantizer, [None])
            for spec in chain:
                if spec is not None:
                    formats.setdefault(spec, []).append(f"{name}.{quantizer}")
    storable = {FP8_KV, replace(FP8_KV, dynamic=True), NVFP4_KV}
    if len(formats) > 1 or not formats.keys() <= storable:
        found = "; ".join(f"{spec} at {listed(names, 2)}" for spec, names in formats.items())
        raise ExportError(
            f"the KV cache of a checkpoint has one format, {FP8_KV} or {NVFP4_KV}; found {found}"
        )
    return next(iter(formats), None)


def _warnings(
    layers: dict[str, tuple[QuantModule, Scheme]], attention: dict[str, QuantAttention], kv: QuantSpec | None
) -> list[str]:
    unscaled = [name for name, (_, scheme) in layers.items() if _is_dynamic_tensor(scheme.inputs)]
    unscaled += list(attention) if _is_dynamic_tensor(kv) else []
    unstored = [
        f"{name}.{quantizer}"
        for name, layer in [*((name, layer) for name, (layer, _) in layers.items()), *attention.items()]
        for quantizer in _active_specs(layer)
        if quantizer in ("output_quantizer", "q_bmm_quantizer")
    ]
    unread = sorted({scheme.quant_algo for _, scheme in layers.values() if scheme.quant_algo in _UNREAD})
    warnings = []
    if unscaled:
        warnings.append(
            f"{len(unscaled)} layers were never calibrated (algorithm None): the checkpoint has no activation scales "
            f"for them ({listed(unscaled, 2)})"
        )
    if unstored:
        warnings.append(f"the dialect has no place for {len(unstored)} quantizers: {listed(unstored, 2)}")
    if unread:
        warnings.append(f"no serving engine reads {', '.join(unread)} yet; Octavo does")
    return warnings


_UNREAD = ("W4A16_MXFP4", "MXFP6", "MXINT8")


def _is_dynamic_tensor(spec: QuantSpec | None) -> bool:
    return spec is not None and spec.dynamic and isinstance(spec.granularity, PerTensor)
