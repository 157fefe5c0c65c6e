"""Attaching quantizers to a model's layers as a plan says, and taking them off again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from octavo.core.calibration.collectors import Seen, collecting
from octavo.core.console import say
from octavo.core.errors import CalibrationError, listed
from octavo.core.graph.groups import probe_or_note
from octavo.core.modules import (
    QuantModule,
    check_unswap,
    quantized_layers,
    swap,
    swapped_layers,
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
            off: dict[str, tuple[StageSetting, ...]] = dict.fromkeys(site.quantized.constant_names(), ())
            swap_with(site.name, site.layer, site.quantized, off | layer.quantizers)
            for quantizer, rotation in layer.rotations.items():
                getattr(site.layer, quantizer).rotation = rotation
    plugins().prepare_model(model)


def detach(model: nn.Module) -> None:
    """Undo `attach`: every layer gets its class back; also after an `attach` that failed half-way.

    Raises:
        UnsupportedError: a layer got a forward of its own since; nothing was changed.
    """
    layers = list(swapped_layers(model))
    for name, layer in layers:
        check_unswap(name, layer)
    plugins().unprepare_model(model)
    for name, layer in layers:
        unswap(name, layer)


def check_reached(model: nn.Module, quiet: bool = False) -> None:
    """Run a tiny forward pass, where an adapter knows one, and check that quantized classes really run.

    A model whose tiny forward pass fails is not checked, and a line says so unless `quiet`.

    Raises:
        CalibrationError: a layer was called and a quantizer of it that is on was not; they are named.
    """
    inputs = plugins().tiny_inputs(model)
    if inputs is None:
        return
    layers = dict(quantized_layers(model))
    seen = Seen()
    with collecting(model, dict.fromkeys((q for _, q in tensor_quantizers(model)), seen)):
        recorder, note = probe_or_note(model, layers, inputs)
    if recorder is None:
        say(f"warning: {note}, so whether every quantizer is reached was not checked", quiet)
        return
    hidden = [
        f"{name}.{quantizer_name}"
        for name in sorted(recorder.called)
        for quantizer_name, quantizer in layers[name].quantizers().items()
        if any(stage.enabled for stage in quantizer.stages())
        and not any(stage in seen.quantizers for stage in quantizer.stages())
    ]
    if hidden:
        raise CalibrationError(
            f"{len(hidden)} quantizers of layers that ran were never reached: {listed(hidden)}. Something replaced "
            "these layers' forward; quantize before whatever did, or exclude them"
        )


@torch.inference_mode(False)  # state made in inference mode could neither be changed nor trained with later
def swap_with(
    name: str, layer: nn.Module, quantized: type[QuantModule], stages: Mapping[str, Sequence[StageSetting]]
) -> None:
    """Swap the class of one layer, with new quantizers of these stages (none: a quantizer that is off)."""
    device = next((parameter.device for parameter in layer.parameters()), None)
    quantizers = {
        quantizer: make_quantizer(settings, quantized.quantizer_shape(layer, quantizer) or (), device)
        for quantizer, settings in stages.items()
    }
    swap(name, layer, quantized, quantizers)


def make_quantizer(
    settings: Sequence[StageSetting], shape: Sequence[int], device: torch.device | None
) -> Quantizer:
    """Return a quantizer of these stages for tensors of `shape`, uncalibrated but for pinned amax."""
    stages = [
        TensorQuantizer(setting.spec, shape, device, setting.range_mask, setting.calibrator, setting.bias)
        for setting in settings
    ]
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
