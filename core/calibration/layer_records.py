"""Quantized layers as JSON-ready data, and quantizers attached again by such data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from octavo.core.calibration.attach import swap_with
from octavo.core.errors import ModeError, UnsupportedError
from octavo.core.formats import QuantSpec
from octavo.core.modes.record import part
from octavo.core.modules import (
    QuantAttention,
    QuantExperts,
    QuantModule,
    combined_class,
    quantized_class,
    quantized_layers,
)
from octavo.core.plan.settings import StageSetting
from octavo.core.plugins import plugins
from octavo.core.quantizers import Bias, Calibrator, Quantizer, Rotation, TensorQuantizer

_FACTORS = ("pre_quant_scale", "low_rank_down", "low_rank_up", "bias_value")


def describe_quantizers(model: nn.Module) -> dict[str, Any]:
    """Return every quantized layer and its quantizers as JSON-ready data that `attach_described` reads."""
    return {
        name: {
            "attention": isinstance(layer, QuantAttention),
            "quantizers": {
                quantizer_name: [
                    _describe_stage(stage)
                    for stage in quantizer.stages()
                    if stage.spec is not None or stage.rotation is not None or _shapes_of(stage)
                ]
                for quantizer_name, quantizer in layer.quantizers().items()
            },
        }
        for name, layer in quantized_layers(model)
    }


def attach_described(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Attach the quantizers that `describe_quantizers` described to a plain model, uncalibrated.

    Raises:
        CheckpointError: a description lacks a part; it is named.
        ModeError: a layer is missing, or its class has other quantizers.
        UnsupportedError: a layer's class has no quantized class.
        ConfigError: a format does not exist.
    """
    modules = dict(model.named_modules())
    experts = plugins().expert_layers(model)
    described = [_read_layer(name, data, modules, experts) for name, data in layers.items()]
    for layer in described:
        swap_with(layer.name, layer.layer, layer.quantized, layer.stages)
        for quantizer_name, enabled in layer.enabled.items():
            quantizer: Quantizer = getattr(layer.layer, quantizer_name)
            absorbed = layer.absorbed[quantizer_name]
            scales, rotations = layer.scales[quantizer_name], layer.rotations[quantizer_name]
            # One that is off has no description, unless it multiplies or rotates.
            for stage, is_on, is_absorbed, shapes, rotation in zip(
                quantizer.stages(), enabled, absorbed, scales, rotations, strict=False
            ):
                stage.enabled, stage.rotation = is_on, rotation
                if is_absorbed:
                    stage.absorb()
                for buffer, shape in shapes.items():
                    device = _device_of(layer.layer)
                    setattr(stage, buffer, torch.full(shape, torch.nan, device=device, dtype=torch.float32))
    plugins().prepare_model(model)


@dataclass(frozen=True)
class _DescribedLayer:
    """A layer, its quantized class, and of its quantizers stages, switches, what is absorbed, factors, rotations."""

    name: str
    layer: nn.Module
    quantized: type[QuantModule]
    stages: dict[str, tuple[StageSetting, ...]]
    enabled: dict[str, tuple[bool, ...]]
    absorbed: dict[str, tuple[bool, ...]]
    scales: dict[str, tuple[dict[str, tuple[int, ...]], ...]]
    rotations: dict[str, tuple[Rotation | None, ...]]


def _read_layer(
    name: str, data: Any, modules: Mapping[str, nn.Module], experts: Mapping[str, type[QuantExperts]]
) -> _DescribedLayer:
    where = f"the record's layer {name!r}"
    if name not in modules:
        raise ModeError(
            f"the record has a quantized layer {name!r}; this {type(modules['']).__name__} has none"
        )
    quantized = _quantized_class(name, modules[name], part(data, "attention", bool, where), experts.get(name))
    quantizers = part(data, "quantizers", dict, where)
    stages, enabled, absorbed, scales, rotations = {}, {}, {}, {}, {}
    for quantizer_name in quantizers:
        described = part(quantizers, quantizer_name, list, where)
        stages[quantizer_name] = tuple(
            _read_stage(stage, f"{where}: {quantizer_name}")
            for stage in described
            if stage.get("spec", "missing") is not None
        )
        enabled[quantizer_name] = tuple(part(stage, "enabled", bool, where) for stage in described)
        absorbed[quantizer_name] = tuple("absorbed" in stage for stage in described)
        scales[quantizer_name] = tuple(_read_shapes(stage, where) for stage in described)
        rotations[quantizer_name] = tuple(_read_rotation(stage, where) for stage in described)
    if set(quantizers) - set(quantized.on_demand) != set(quantized.constant_names()):
        raise ModeError(
            f"{where} has the quantizers {', '.join(quantizers)}; {quantized.__name__} has "
            f"{', '.join(quantized.quantizer_names)}"
        )
    return _DescribedLayer(name, modules[name], quantized, stages, enabled, absorbed, scales, rotations)


def _quantized_class(
    name: str, layer: nn.Module, is_attention: bool, experts: type[QuantExperts] | None
) -> type[QuantModule]:
    mixin, quantized = QuantAttention if is_attention else experts, quantized_class(type(layer))
    if mixin is not None and (quantized is None or not issubclass(quantized, mixin)):
        return combined_class(mixin, type(layer))
    if quantized is None:
        raise UnsupportedError(f"{name}: {type(layer).__name__} has no quantized class; register one first")
    return quantized


def _read_stage(data: Any, where: str) -> StageSetting:
    spec = QuantSpec.from_json(part(data, "spec", dict, where))
    calibrator = part(data, "calibrator", dict, where) if "calibrator" in data else {"method": "max"}
    range_mask = part(data, "range_mask", bool, where)
    return StageSetting(spec, None, range_mask, Calibrator.from_json(calibrator), _read_bias(data, where))


def _read_bias(data: Any, where: str) -> Bias | None:
    if "bias" not in data:
        return None
    bias, where = part(data, "bias", dict, where), f"{where}: bias"
    method = part(bias, "method", str, where)
    return Bias(tuple(part(bias, "axes", list, where)), method, part(bias, "dynamic", bool, where))


def _read_rotation(data: Any, where: str) -> Rotation | None:
    if "rotation" not in data:
        return None
    rotation, where = part(data, "rotation", dict, where), f"{where}: rotation"
    return Rotation(rotation.get("block_size"), part(rotation, "back", bool, where))


def _read_shapes(data: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a stage's factors, by the buffer's name."""
    return {name: tuple(part(data, name, list, where)) for name in _FACTORS if data.get(name) is not None}


def _device_of(layer: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in layer.parameters()), None)


def _describe_stage(stage: TensorQuantizer) -> dict[str, Any]:
    return {
        "spec": None if stage.spec is None else stage.spec.to_json(),
        "range_mask": stage.range_mask,
        "enabled": stage.enabled,
        "calibrator": stage.calibrator.to_json(),
        "pre_quant_scale": None,
        **_shapes_of(stage),
        **({"absorbed": True} if stage.is_absorbed else {}),
        **({} if stage.bias is None else {"bias": stage.bias.to_json()}),
        **({} if stage.rotation is None else {"rotation": stage.rotation.to_json()}),
    }


def _shapes_of(stage: TensorQuantizer) -> dict[str, list[int]]:
    found = {name: getattr(stage, name) for name in _FACTORS}
    return {name: list(tensor.shape) for name, tensor in found.items() if tensor is not None}
