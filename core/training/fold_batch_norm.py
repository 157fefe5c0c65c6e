"""`fold_batch_norm`: batch normalization taken into the layers before it, also into quantized ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from octavo.core.calibration.finalized import check_not_finalized
from octavo.core.errors import ModeError, UnsupportedError, listed
from octavo.core.formats import QuantSpec
from octavo.core.formats.granularity import PerChannel
from octavo.core.graph.sole_readers import SoleReaders
from octavo.core.modules import QuantModule
from octavo.core.quantizers import TensorQuantizer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class _Pair:
    """A layer, by its name, and the normalization that alone reads what it makes."""

    name: str
    layer: Any
    norm_name: str
    norm: Any

    def factor(self) -> Tensor:
        """Return what each output channel is multiplied by, fp32 [out_channels]."""
        scale: Tensor = torch.rsqrt(self.norm.running_var.float() + self.norm.eps)
        return scale if self.norm.weight is None else scale * self.norm.weight.float()


@torch.no_grad()
def fold_batch_norm(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> dict[str, str]:
    """Fold every batch normalization into the convolution or linear layer before it, in place (arXiv:1712.05877, 3.2).

    The normalization becomes `nn.Identity`. The model computes in evaluation mode what it did. A quantized layer keeps
    its codes: each output channel's `amax` is multiplied by what its weights are. So the scales of its weights must
    be by output channel, held; with others, fold before quantizing.

    Args:
        model: In any mode; running statistics are those that are folded.
        inputs: One batch, to see which normalization reads which layer: a tensor, or keyword arguments.

    Returns:
        {name of a layer: name of the normalization that was folded into it}, in the order of the model.

    Raises:
        ModeError: the model is finalized for a dialect, or a weight quantizer was never calibrated.
        UnsupportedError: a quantizer stands between, or has scales that a factor for each channel does not fit;
            nothing was changed.
    """
    check_not_finalized(model, "folding normalization of")
    pairs = list(_pairs(model, {"input": inputs} if isinstance(inputs, Tensor) else inputs, inputs))
    for pair in pairs:
        _check(pair)
    for pair in pairs:
        _fold(model, pair)
    return {pair.name: pair.norm_name for pair in pairs}


def _pairs(model: nn.Module, named: Mapping[str, Any], inputs: Any) -> Iterator[_Pair]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear))}
    norms = {
        n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_var is not None
    }
    readers = SoleReaders(layers, norms)
    readers.watch(_called(model, inputs) if isinstance(inputs, Tensor) else model, named)
    for name, layer in layers.items():
        found = readers.readers_of(name)
        if len(found) == 1 and name not in readers.used_elsewhere:
            yield _Pair(name, layer, found[0], norms[found[0]])


def _called(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a module that calls `model` with one positional argument, whatever that is named."""

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input: Tensor) -> Any:
            return self.model(input)

    return Called().train(model.training)


def _check(pair: _Pair) -> None:
    if not isinstance(pair.layer, QuantModule):
        return
    quantizers = pair.layer.quantizers()
    between = quantizers["output_quantizer"]
    if any(stage.enabled for stage in between.stages()):
        raise UnsupportedError(
            f"{pair.norm_name} cannot be folded into {pair.name}: its output_quantizer rounds what is normalized; "
            "switch it off, or quantize the input of the next layer instead"
        )
    stages = [stage for stage in quantizers["weight_quantizer"].stages() if stage.enabled]
    waiting = [f"{pair.name}.weight_quantizer" for stage in stages if stage.needs_calibration]
    if waiting:
        raise ModeError(f"{listed(waiting)} was never calibrated; run octavo.calibrate first")
    for stage in stages:
        if stage.spec is not None and not _fits(stage.spec):
            raise UnsupportedError(
                f"{pair.norm_name} cannot be folded into {pair.name}: its weight's scales are {stage.spec}, expected "
                "one for each output channel, calibrated; fold before quantizing"
            )


def _fits(spec: QuantSpec) -> bool:
    return not spec.dynamic and spec.global_max is None and spec.granularity == PerChannel(0)


def _fold(model: nn.Module, pair: _Pair) -> None:
    layer, norm = pair.layer, pair.norm
    if isinstance(layer, QuantModule):
        for stage in layer.quantizers()["weight_quantizer"].stages():
            _scale_amax(stage, pair.factor())
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse(layer.weight, layer.bias, *statistics)
    layer.weight.copy_(weight)
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.detach().to(layer.weight.dtype), layer.weight.requires_grad)
    else:
        layer.bias.copy_(bias)
    model.set_submodule(pair.norm_name, nn.Identity())


def _scale_amax(stage: TensorQuantizer, factor: Tensor) -> None:
    if stage.spec is not None and stage.enabled:
        stage.set_state(amax=stage.amax * factor.abs().to(stage.amax.device))
