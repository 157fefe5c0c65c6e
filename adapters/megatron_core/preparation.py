"""What quantized layers of Megatron-core must know of the model around them, and what cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from octavo.adapters.megatron_core.conversion.fused_rows import fused_rows
from octavo.adapters.megatron_core.layers import QuantParallelLinear
from octavo.adapters.megatron_core.record import CHILD, RecordCarrier
from octavo.core.errors import UnsupportedError, listed
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec
from octavo.core.modules import quantized_layers
from octavo.core.quantizers import SequentialQuantizer, TensorQuantizer


def prepare_layers(model: nn.Module) -> None:
    """Tell quantized layers what only the modules around them know, after their classes were swapped.

    Raises:
        UnsupportedError: blocks of values with one scale would lie on two ranks; the layers are named.
    """
    layers = [(n, layer) for n, layer in quantized_layers(model) if isinstance(layer, QuantParallelLinear)]
    if CHILD not in model._modules:
        model.add_module(CHILD, RecordCarrier(model))
    _mark_gated(model)
    _lend_embedding(model)
    check_blocks(layers)
    for name, layer in layers:
        _divide_fused(name, layer)


def unprepare_layers(model: nn.Module) -> None:
    """Undo what `prepare_layers` did to the model itself; its layers forget with their quantized classes."""
    model._modules.pop(CHILD, None)


def check_blocks(layers: list[tuple[str, QuantParallelLinear]]) -> None:
    """Refuse blocks that the division among ranks, or into gate and up, would cut.

    Raises:
        UnsupportedError: some are cut.
    """
    problems = [problem for name, layer in layers for problem in _cut_blocks(name, layer)]
    if problems:
        raise UnsupportedError(
            f"{len(problems)} weights cannot be shared in whole blocks: {listed(problems, 2)}; use fewer "
            "tensor-parallel ranks, smaller blocks, or leave these layers out"
        )


def _cut_blocks(name: str, layer: QuantParallelLinear) -> Iterator[str]:
    rows, columns = layer.rank_shape(layer)
    rows = rows // 2 if layer.is_gated else rows
    for stage in layer.weight_quantizer.stages():
        if stage.spec is None or not isinstance(stage.spec.granularity, PerBlock):
            continue
        lengths = stage.spec.granularity.block_lengths(2)
        for what, size, length in (("rows", rows, lengths[0]), ("columns", columns, lengths[1])):
            if size % length and (layer.ranks.size() > 1 or what == "rows"):
                yield f"{name} has {size} {what} on a rank, in blocks of {length}"


def _mark_gated(model: nn.Module) -> None:
    from megatron.core.transformer.mlp import MLP

    for module in model.modules():
        if isinstance(module, MLP) and isinstance(module.linear_fc1, QuantParallelLinear):
            module.linear_fc1.is_gated = bool(module.config.gated_linear_unit)


def _lend_embedding(model: nn.Module) -> None:
    """Let an output layer without a weight find the embedding's, with which it is called."""
    for module in model.modules():
        output: Any = getattr(module, "output_layer", None)
        lend = getattr(module, "shared_embedding_or_output_weight", None)
        if isinstance(output, QuantParallelLinear) and output.weight is None and lend is not None:
            output.shared_weight = lend


def _divide_fused(name: str, layer: QuantParallelLinear) -> None:
    """Give each weight that a fused layer holds its own scale, where the format has one for a tensor.

    Checkpoints hold query, key and value, or gate and up, as tensors of their own. The scales are those of rows then,
    and calibration makes them equal within one such weight. Formats with two levels need nothing: checkpoints share
    the second one among the parts.
    """
    weight = layer.weight
    segments = None if weight is None or layer.divided_dim != 0 else fused_rows(name, layer)
    if weight is None or segments is None:
        return
    stages = layer.weight_quantizer.stages()
    changed = [_with_row_scales(stage, weight) if _has_one_scale(stage) else stage for stage in stages]
    if changed != stages:
        layer.weight_quantizer = changed[0] if len(changed) == 1 else SequentialQuantizer(changed)
        layer.row_segments = segments


def _has_one_scale(stage: TensorQuantizer) -> bool:
    spec = stage.spec
    if spec is None or spec.state != ("amax",) or stage.calibrator.method != "max" or stage.bias is not None:
        return False
    return isinstance(spec.granularity, PerTensor)


def _with_row_scales(stage: TensorQuantizer, weight: Tensor) -> TensorQuantizer:
    """Return a quantizer that differs from `stage` in that each row of the weight has a scale."""
    spec = replace(cast(QuantSpec, stage.spec), granularity=PerChannel(0))
    changed = TensorQuantizer(spec, weight.shape, weight.device, stage.range_mask, stage.calibrator)
    changed.enabled, changed.rotation = stage.enabled, stage.rotation
    if not stage.needs_calibration:
        changed.set_state(amax=stage.amax.expand(len(weight)))
    return changed
