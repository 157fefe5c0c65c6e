"""`fold_weight`: rounded values in place of weights, so that nothing is rounded when the model runs."""

from __future__ import annotations

import torch
from torch import nn

from octavo.core.calibration.finalized import check_not_finalized
from octavo.core.calibration.fold_mode import FOLD, FoldMode
from octavo.core.errors import ModeError, listed
from octavo.core.modes.record import ModeRecord, history, last_record, set_history
from octavo.core.modules import check_not_packed, quantized_layers
from octavo.core.plan import check_device


@torch.no_grad()
def fold_weight(model: nn.Module) -> nn.Module:
    """Write the rounded values of every weight into its parameter and turn its quantizer off, in place.

    The model computes the same, faster. The original weights are gone, so a folded model can be run, trained, saved
    and restored, and can be neither exported (a checkpoint's codes come from the original weights) nor finalized nor
    unquantized; its weight quantizers stay off.

    Args:
        model: A quantized, calibrated model, with its weights in memory.

    Returns:
        `model`.

    Raises:
        ModeError: the model is not quantized or is finalized for a dialect, weights are packed, or a weight quantizer
            was never calibrated.
        PlanError: weights are on the meta device, or sharded.
    """
    if last_record(model, "quantize") is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    check_not_packed(model, "fold them")
    check_not_finalized(model, "folding the weights of")
    check_device(model)
    weights = [
        (f"{name}.{quantizer_name}", layer.quantizers()[quantizer_name], weight)
        for name, layer in quantized_layers(model)
        for quantizer_name, weight in layer.quantized_weights().items()
        if any(stage.enabled for stage in layer.quantizers()[quantizer_name].stages())
    ]
    waiting = [
        name
        for name, quantizer, _ in weights
        if any(stage.enabled and stage.needs_calibration for stage in quantizer.stages())
    ]
    if waiting:
        raise ModeError(
            f"{len(waiting)} weight quantizers were never calibrated: {listed(waiting)}; run octavo.calibrate first"
        )
    if weights and last_record(model, FOLD) is None:
        # Before the change: interrupted half-way, the model computes the same and is folded in part.
        set_history(model, (*history(model), ModeRecord(FOLD, FoldMode.version, {}, {})))
    for _, quantizer, weight in weights:
        weight.copy_(quantizer(weight))
        for stage in quantizer.stages():
            stage.enabled, stage.pre_quant_scale = False, None
    return model
