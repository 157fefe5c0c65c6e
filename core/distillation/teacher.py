"""The teacher that a quantized model has in itself: its original weights, without quantizers."""

from __future__ import annotations

import copy

from torch import nn

from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.errors import ModeError
from octavo.core.modes.record import last_record, set_history
from octavo.core.modules import quantized_layers

_GIVE_ONE = "give teacher=, the model as it was before (a second from_pretrained)"


def original_of(model: nn.Module) -> nn.Module:
    """Return the model that `model` was quantized from, frozen, in evaluation mode.

    It shares every parameter that is not trained, and all buffers; what is trained (`requires_grad`) it has as a copy.

    Args:
        model: A quantized model whose weights were not changed since.

    Raises:
        ModeError: the model is not quantized, its original weights are gone, or it was distilled before.
    """
    record = last_record(model, "quantize")
    if record is None:
        raise ModeError(f"missing teacher: the model is not quantized, so that it is its own; {_GIVE_ONE}")
    check_not_folded(model, "learn from them")
    if last_record(model, "distill") is not None:
        raise ModeError(
            f"missing teacher: the model was distilled before, and its original weights are gone; {_GIVE_ONE}"
        )
    moving = [one.method for one in algorithms_of(record.config.get("algorithm")) if one.moves_weights]
    if moving:
        raise ModeError(
            f"missing teacher: {', '.join(moving)} changed the weights, so that the original model is gone; {_GIVE_ONE}"
        )
    shared = [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
    teacher = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    set_history(teacher, ())
    for _, layer in quantized_layers(teacher):
        for quantizer in layer.quantizers().values():
            for stage in quantizer.stages():
                stage.enabled = False
    return teacher.requires_grad_(False)
