"""Attaching quantizers to a model's layers as a plan says, and taking them off again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from octavo.core.calibration.collectors import Seen, collecting
from octavo.core.errors import CalibrationError, ModeError, UnsupportedError, listed
from octavo.core.formats import QuantSpec
from octavo.core.graph.groups import probe
from octavo.core.modules import (
    QuantAttention,
    QuantModule,
    combined_class,
    quantized_class,
    quantized_layers,
    swap,
    tensor_quantizers,
    unswap,
)
from octavo.core.plan.settings import LayerSetting, StageSetting
from octavo.core.plugins import plugins
from octavo.core.quantizers import Quantizer, SequentialQuantizer, TensorQuantizer


def attach(model: nn.Module, layers: Sequence[LayerSetting]) -> None:
    """Swap the class of every layer that has a quantizer on, and prepare the model to run them.

    Raises:
        UnsupportedError: an instance's own forward would hide the quantized class.
    """
    for layer in layers:
        if layer.is_quantized:
            site = layer.site
            stages = {name: layer.quantizers.get(name, ()) for name in site.quantized.quantizer_names}
            _swap_with(site.name, site.layer, site.quantized, stages)
    plugins().prepare_model(model)


def detach(model: nn.Module) -> None:
    """Undo `attach`: every layer gets its class back; also after an `attach` that failed half-way."""
    plugins().unprepare_model(model)
    for name, layer in list(quantized_layers(model)):
        unswap(name, layer)


def check_reached(model: nn.Module) -> None:
    """Run a tiny forward pass, where an adapter knows one, and check that quantized classes really run.

    Raises:
        CalibrationError: a layer was called and its quantizers were not; the layers are named.
    """
    inputs = plugins().tiny_inputs(model)
    if inputs is None:
        return
    layers = dict(quantized_layers(model))
    seen = Seen()
    with collecting(model, dict.fromkeys((q for _, q in tensor_quantizers(model)), seen)):
        called = probe(model, layers, inputs).called
    hidden = [
        f"{name}.{quantizer_name}"
        for name in sorted(called)
        for quantizer_name, quantizer in layers[name].quantizers().items()
        if not any(stage in seen.quantizers for stage in quantizer.stages())
    ]
    if hidden:
        raise CalibrationError(
            f"{len(hidden)} quantizers of layers that ran were never reached: {listed(hidden)}. Something replaced "
            "these layers' forward; quantize before whatever did, or exclude them"
        )


def describe_quantizers(model: nn.Module) -> dict[str, Any]:
    """Return every quantized layer and its quantizers as JSON-ready data that `attach_described` reads."""
    return {
        name: {
            "attention": isinstance(layer, QuantAttention),
            "quantizers": {
                quantizer_name: [
                    _describe_stage(stage) for stage in quantizer.stages() if stage.spec is not None
                ]
                for quantizer_name, quantizer in layer.quantizers().items()
            },
        }
        for name, layer in quantized_layers(model)
    }


def attach_described(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Attach the quantizers that `describe_quantizers` described to a plain model, uncalibrated.

    Raises:
        ModeError: a layer is missing or its class has no quantized class.
    """
    modules = dict(model.named_modules())
    for name, described in layers.items():
        if name not in modules:
            raise ModeError(
                f"the record has a quantized layer {name!r}; this {type(model).__name__} has none"
            )
        layer = modules[name]
        quantized = combined_class(QuantAttention, type(layer)) if described["attention"] else None
        quantized = quantized or quantized_class(type(layer))
        if quantized is None:
            raise UnsupportedError(
                f"{name}: {type(layer).__name__} has no quantized class; register one first"
            )
        stages = {
            quantizer_name: tuple(
                StageSetting(QuantSpec.from_json(stage["spec"]), None, stage["range_mask"])
                for stage in described_stages
            )
            for quantizer_name, described_stages in described["quantizers"].items()
        }
        _swap_with(name, layer, quantized, stages)
        for quantizer_name, described_stages in described["quantizers"].items():
            quantizer: Quantizer = getattr(layer, quantizer_name)
            for stage, described_stage in zip(quantizer.stages(), described_stages, strict=False):
                stage.enabled = described_stage["enabled"]
    plugins().prepare_model(model)


def _swap_with(
    name: str, layer: nn.Module, quantized: type[QuantModule], stages: Mapping[str, Sequence[StageSetting]]
) -> None:
    device = next((parameter.device for parameter in layer.parameters()), None)
    quantizers = {
        quantizer: _make_quantizer(settings, quantized.quantizer_shape(layer, quantizer) or (), device)
        for quantizer, settings in stages.items()
    }
    swap(name, layer, quantized, quantizers)


def _make_quantizer(
    settings: Sequence[StageSetting], shape: Sequence[int], device: torch.device | None
) -> Quantizer:
    stages = [TensorQuantizer(setting.spec, shape, device, setting.range_mask) for setting in settings]
    for stage, setting in zip(stages, settings, strict=True):
        if setting.pinned_amax is not None:
            pinned = {
                name: torch.full_like(getattr(stage, name), setting.pinned_amax)
                for name in setting.spec.state
            }
            stage.set_state(**pinned)
    if not stages:
        return TensorQuantizer()
    return stages[0] if len(stages) == 1 else SequentialQuantizer(stages)


def _describe_stage(stage: TensorQuantizer) -> dict[str, Any]:
    assert stage.spec is not None  # noqa: S101 (the caller leaves the others out)
    return {"spec": stage.spec.to_json(), "range_mask": stage.range_mask, "enabled": stage.enabled}
