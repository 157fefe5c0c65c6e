"""Smoothing a layer: a factor on its input, the inverse on its weight, and the maxima of both."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.errors import CalibrationError
from octavo.core.modules import QuantModule, WeightSlot
from octavo.core.quantizers import Quantizer


@torch.no_grad()
def smooth(
    name: str,
    layer: QuantModule,
    pre_quant_scale: Tensor,
    input_amax: Tensor | None = None,
    slot: WeightSlot = WeightSlot(),  # noqa: B008 (frozen)
) -> None:
    """Multiply a layer's input by a factor for each channel and its weight by the inverse; maxima follow.

    As ModelOpt does: the input is multiplied by the factor rounded to the weight's dtype, since checkpoints store that
    one, and the weight by the inverse of the factor itself, its product rounded once. The parameter stays as it is.

    Args:
        name: The layer's name, for messages.
        layer: The layer, calibrated without factors.
        pre_quant_scale: fp32 [in], positive: what the input is multiplied with.
        input_amax: [in], largest magnitude of each channel of the input as it is; needed where the input's scale is
            static.
        slot: Which of the layer's weights; a stack of weights shares the factor.

    Raises:
        CalibrationError: the factor has another shape or is not positive and finite, or there are no maxima for
            a static input.
    """
    weight = layer.quantized_weights()[slot.quantizer].detach()
    _check_factor(name, pre_quant_scale, weight.shape[-1])
    pre_quant_scale = pre_quant_scale.float()
    inputs = layer.quantizers()[slot.inputs].stages()[0]
    weights = layer.quantizers()[slot.quantizer]
    if any(stage.enabled and stage.named_state() for stage in layer.quantizers()[slot.inputs].stages()):
        if input_amax is None:
            raise CalibrationError(
                f"{name}: its input has a static scale, which changes with the factor on it; give the maxima of its "
                f"{weight.shape[-1]} channels"
            )
        set_input_amax(layer.quantizers()[slot.inputs], input_amax, weight.dtype, pre_quant_scale)
    inputs.pre_quant_scale = pre_quant_scale.to(weight.dtype).float()
    weights.stages()[0].pre_quant_scale = 1.0 / pre_quant_scale
    recollect(weights, weight)


@torch.no_grad()
def set_input_amax(
    quantizer: Quantizer, amax: Tensor, dtype: torch.dtype, pre_quant_scale: Tensor | None = None
) -> None:
    """Set the range of an input's quantizer, of all its stages, from the maxima of its channels.

    Args:
        quantizer: Of the input; one without calibrated state stays as it is.
        amax: [in], largest magnitude of each channel.
        dtype: Of the input, in which ModelOpt computes.
        pre_quant_scale: fp32 [in], what the channels are multiplied with.
    """
    largest = amax.to(dtype) if pre_quant_scale is None else amax.to(dtype) * pre_quant_scale
    for stage in quantizer.stages():
        if stage.enabled and stage.named_state():
            rounded = largest.amax().to(dtype)
            stage.set_state(**{part: rounded.expand_as(old) for part, old in stage.named_state().items()})


@torch.no_grad()
def recollect(quantizer: Quantizer, weight: Tensor) -> None:
    """Set the maxima of a weight's quantizer, of all its stages, from the weight times its `pre_quant_scale`."""
    values = quantizer.stages()[0].scaled(weight)
    for stage in quantizer.stages():
        if stage.spec is None:
            continue
        collector = AmaxCollector(stage.spec)
        collector.collect(stage, values)
        if (state := collector.state()) is not None:
            stage.set_state(**state)


def _check_factor(name: str, pre_quant_scale: Tensor, channels: int) -> None:
    if tuple(pre_quant_scale.shape) != (channels,):
        raise CalibrationError(
            f"{name}: pre_quant_scale has one factor for each of its {channels} input channels, found shape "
            f"{tuple(pre_quant_scale.shape)}"
        )
    bad = ~(pre_quant_scale.isfinite() & (pre_quant_scale > 0))
    if bad.any():
        raise CalibrationError(
            f"{name}: factors of pre_quant_scale are positive and finite, found {pre_quant_scale[bad][0].item()}"
        )
