"""`decompress`: dense weights again, of the values that codes stand for."""

from __future__ import annotations

import torch
from torch import nn

from octavo.core.calibration.finalized import forget_finalization
from octavo.core.calibration.fold_mode import FOLD, FoldMode
from octavo.core.compression.mode import COMPRESS
from octavo.core.errors import ModeError
from octavo.core.modes.record import ModeRecord, history, last_record, set_history, with_history
from octavo.core.modules import QuantModule, WeightSlot, hold_dense, packed_layers, packed_slots
from octavo.core.modules.packed_parameter import PackedParameter
from octavo.core.plan import check_device
from octavo.core.plugins import plugins


@torch.inference_mode(False)
@torch.no_grad()
def decompress(model: nn.Module) -> nn.Module:
    """Give packed layers dense parameters, in place, layer by layer: the values that their codes stand for.

    Codes do not give the original weights back. The weights have the values that the codes stood for, and the model
    is then what `fold_weight` makes: its weight quantizers are off, and it can be run, trained, saved and restored,
    and can be neither exported nor unquantized.

    Args:
        model: A model with packed weights, all of them in memory; or what wraps it (PEFT, for one), which gives its
            layers back to it.

    Returns:
        `model`.

    Raises:
        ModeError: no weight is packed.
        PlanError: weights are on the meta device, or sharded.
    """
    layers = list(packed_layers(model))
    if not layers:
        raise ModeError("no weight of this model is packed; octavo.compress packs those of a quantized model")
    check_device(model)
    owner = with_history(model)
    if last_record(owner, FOLD) is None:
        # Before the change: interrupted half-way, the model computes the same and is folded in part.
        set_history(owner, (*history(owner), ModeRecord(FOLD, FoldMode.version, {}, {})))
    for _, layer in layers:
        for slot, weight in [*packed_slots(layer)]:
            _unpack(layer, slot, weight)
    set_history(owner, tuple(record for record in history(owner) if record.mode != COMPRESS))
    plugins().weights_unpacked(owner)
    forget_finalization(owner)  # its numbers are the model's own now
    return model


def _unpack(layer: QuantModule, slot: WeightSlot, weight: PackedParameter) -> None:
    quantizer = layer.quantizers()[slot.quantizer]
    values = quantizer(weight.dequantize())  # of formats in turn, rounds to the later ones
    if weight.is_transposed:
        values = values.transpose(-1, -2).contiguous()
    hold_dense(layer, slot, nn.Parameter(values))
    for stage in quantizer.stages():
        stage.enabled = False
