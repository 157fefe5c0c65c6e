"""What a rank says of its quantized layers: formats, and the tensors that quantizers have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from octavo.adapters.megatron_core.conversion.messages import of_all_ranks
from octavo.adapters.megatron_core.conversion.shares import Share
from octavo.adapters.megatron_core.layers import QuantParallelLinear
from octavo.adapters.megatron_core.names import global_names
from octavo.adapters.megatron_core.sharded_state import divided_dim
from octavo.core.calibration.layer_records import describe_quantizers
from octavo.core.errors import UnsupportedError, listed
from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.modules import QuantModule, quantized_layers
from octavo.core.quantizers import TensorQuantizer

FACTOR = "pre_quant_scale"


def quantized_layers_of_all_ranks(chunks: Sequence[nn.Module]) -> dict[str, dict[str, Any]]:
    """Return the record of every rank's quantized layers, by their names in the whole model. All ranks call this.

    Each is what `describe_quantizers` returns, and `divided`: which dim of each tensor ranks share, by
    `tensor_name`; and `has_row_scales`: the scales of a fused weight are one for each row, and equal within what the
    checkpoint has as one tensor. The format is then that of such a tensor.

    Raises:
        UnsupportedError: a quantizer has something that is not gathered yet.
    """
    own: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        names, described = global_names(chunk), describe_quantizers(chunk)
        for name, layer in quantized_layers(chunk):
            own[names[name]] = _described(name, layer, described[name])
    found: dict[str, dict[str, Any]] = {}
    for layers in of_all_ranks(own):
        found |= layers
    if problems := [layer["problem"] for layer in found.values() if layer["problem"]]:
        raise UnsupportedError(f"{listed(problems, 2)}, which is not exported from Megatron-core models yet")
    return found


def quantizer_tensors(chunks: Sequence[nn.Module]) -> dict[str, tuple[Tensor, Share]]:
    """Return the tensors of a rank's quantizers, those that are not calibrated left out, by their whole names."""
    found: dict[str, tuple[Tensor, Share]] = {}
    for chunk in chunks:
        names = global_names(chunk)
        for name, layer in quantized_layers(chunk):
            for own, (tensor, dim) in _tensors(layer).items():
                group = getattr(layer, "tp_group", None)
                place = (0, 1) if dim is None or group is None else (group.rank(), group.size())
                found[f"{names[name]}.{own}"] = (tensor, Share.of(tensor, *place))
    return found


def tensor_name(quantizer: str, stage: int, tensor: str) -> str:
    """Return what a quantizer's tensor is called inside its layer."""
    return f"{quantizer}.{stage}.{tensor}"


def _described(name: str, layer: QuantModule, described: Mapping[str, Any]) -> dict[str, Any]:
    divided = {own: dim for own, (_, dim) in _tensors(layer).items() if dim is not None}
    has_row_scales = getattr(layer, "row_segments", None) is not None
    quantizers = dict(described["quantizers"])
    problems = [
        f"{name}.{quantizer} has {problem}"
        for quantizer, stages in layer.quantizers().items()
        for stage in stages.stages()
        for problem in _problems(stage)
    ]
    if has_row_scales:
        quantizers["weight_quantizer"] = [
            {**stage, "spec": _of_one_scale(stage["spec"])} for stage in quantizers["weight_quantizer"]
        ]
    more = {"divided": divided, "has_row_scales": has_row_scales, "problem": ", ".join(problems)}
    return {**described, "quantizers": quantizers, **more}


def _of_one_scale(spec: dict[str, Any]) -> dict[str, Any]:
    return replace(QuantSpec.from_json(spec), granularity=PerTensor()).to_json()


def _tensors(layer: QuantModule) -> dict[str, tuple[Tensor, int | None]]:
    """Return {name: (tensor, the dim that ranks share)} of what a layer's quantizers have."""
    found: dict[str, tuple[Tensor, int | None]] = {}
    for quantizer, stages in layer.quantizers().items():
        for number, stage in enumerate(stages.stages()):
            state = {} if stage.needs_calibration else stage.named_state()
            if stage.pre_quant_scale is not None:
                state[FACTOR] = stage.pre_quant_scale
            for own, tensor in state.items():
                dim = None
                if isinstance(layer, QuantParallelLinear):
                    dim = divided_dim(layer, quantizer, stage, own)
                found[tensor_name(quantizer, number, own)] = (tensor.detach(), dim)
    return found


def _problems(stage: TensorQuantizer) -> list[str]:
    """Return what a quantizer has that is not gathered; said to all ranks, so that all of them refuse it."""
    problems = {
        "a low-rank correction": stage.low_rank_down is not None,
        "a bias": stage.bias is not None,
        "a rotation": stage.rotation is not None,
        "scales that are still learned": stage.amax_shift is not None,
    }
    return [what for what, is_there in problems.items() if is_there]
