"""Rounded weights, as what a plain layer in place of a quantized one would multiply its input with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octavo.core.modules import QuantModule, WeightSlot, is_transposed, quantized_layers


@torch.no_grad()
def unscale_weights(model: nn.Module) -> None:
    """Give weights that hold rounded values what else their layers compute with, in place.

    Rounding for good (`fold_weight`, `decompress`) leaves a factor on the input and a low-rank correction beside the
    weight. They are multiplied into it and added to it here, and are gone afterwards: unrounded, each layer computes
    what it did. Weights that still are the original ones stay.
    """
    for _, layer in quantized_layers(model):
        for slot in layer.weight_slots():
            _unscale(layer, slot)


def _unscale(layer: QuantModule, slot: WeightSlot) -> None:
    weights = layer.quantizers()[slot.quantizer].stages()[0]
    inputs = layer.quantizers()[slot.inputs].stages()[0]
    down, up = weights.low_rank_down, weights.low_rank_up
    if down is None and (inputs.pre_quant_scale is None or weights.pre_quant_scale is not None):
        return
    parameter = layer.get_parameter(slot.parameter)
    seen = parameter.transpose(-1, -2) if is_transposed(layer, slot) else parameter
    values = weights.scaled(seen).float()
    if down is not None and up is not None:
        values = values + up @ down
    seen.copy_(_times(values, inputs.pre_quant_scale))
    inputs.pre_quant_scale = weights.pre_quant_scale = None
    weights.low_rank_down = weights.low_rank_up = None


def _times(weight: Tensor, factor: Tensor | None) -> Tensor:
    """Return a weight [..., out, in] times a factor [in], or [..., in], of its input."""
    return weight if factor is None else weight * factor.unsqueeze(-2)
