"""`compress`: codes and scales in place of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from octavo.core.calibration.finalized import finalized_for, make_lasting
from octavo.core.compression.choice import check_model, check_weights, chosen_weights
from octavo.core.compression.mode import COMPRESS, CompressMode
from octavo.core.compression.numbers import DEFAULT, exporter_named, take_numbers
from octavo.core.console import say
from octavo.core.model.serving import unstored_quantizers
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modes.record import ModeRecord, history, last_record, set_history
from octavo.core.modules import PackedParameter, hold_packed, is_transposed, packed_form
from octavo.core.plugins import plugins
from octavo.core.report.weight_error import WeightErrors


@torch.inference_mode(False)
@torch.no_grad()
def compress(
    model: nn.Module,
    patterns: str | Sequence[str] | None = None,
    dialect: str = DEFAULT,
    target: str | None = None,
    quiet: bool = False,
) -> nn.Module:
    """Hold quantized weights as codes and scales, in place, layer by layer; the original ones are gone afterwards.

    The codes are those of a checkpoint: the model is finalized for its dialect first, for good, and computes what that
    checkpoint stands for. Exporting it into that dialect gives the bytes that the uncompressed model would have given.
    With `dialect="neutral"` the numbers of the simulation are packed: the model computes what it did, and
    cannot be exported. docs/compress.md says more.
    Values are the same bit for bit; kernels may sum the products with them in another order (`OCTAVO_KERNELS`).

    Nothing is changed when it is refused. Interrupted half-way, the model computes the same and is packed in part; the
    same call packs the rest.

    Args:
        model: A quantized, calibrated model, with its weights in memory.
        patterns: Globs on names of layers; None packs every quantized weight.
        dialect: Name of the exporter that will write the model (`unified_hf`, `compressed_tensors`, `tensorrt_llm`), or
            `neutral`.
        target: Engine that will serve the checkpoint: the numbers are those that it computes with, and the default
            dialect is the one that it loads the model from.
        quiet: Print nothing.

    Returns:
        `model`.

    Raises:
        ModeError: the model is not quantized or calibrated, its weights are folded, it has other numbers already, or
            nothing is left to pack.
        ConfigError: a pattern matches nothing, or the target is unknown.
        PluginError: no exporter has the dialect's name.
        UnsupportedError: a weight cannot be packed, or the dialect does not store its format; it is named.
        PlanError: weights are on the meta device, or sharded.
        ExportError: the target loads no checkpoint of the model.
    """
    check_model(model)
    weights = chosen_weights(model, patterns)
    exporter = exporter_named(model, dialect, target)
    check_weights(model, weights, exporter if finalized_for(model) is None else None)
    if exporter is not None:
        for warning in unstored_quantizers(model, exporter.dialect):
            say(f"warning: {warning}; they are off from now on", quiet)
    take_numbers(model, exporter, target)
    if last_record(model, COMPRESS) is None:
        set_history(model, (*history(model), ModeRecord(COMPRESS, CompressMode.version, {}, {})))
    make_lasting(model)
    before = sum(weight.layer.get_parameter(weight.slot.parameter).nbytes for weight in weights)
    after = sum(map(_pack, weights))
    plugins().weights_packed(model)
    say(f"packed {len(weights)} weights: {after:,} bytes instead of {before:,}", quiet)
    return model


def _pack(weight: StoredWeight) -> int:
    """Replace one weight by its codes; return their bytes."""
    layer, slot, values = weight.layer, weight.slot, weight.values
    packed = PackedParameter(weight.codes(values), is_transposed(layer, slot))
    hold_packed(layer, slot, packed)
    layer.quantizers()[slot.quantizer].stages()[0].absorb()
    errors = WeightErrors()
    if slot.is_stacked and not weight.is_in_one_tensor:  # checkpoints hold one by one
        for index, name in enumerate(weight.names()):
            errors.add(name, values[index], packed.tensor().one_of_stack(index))
    else:
        errors.add("", values, packed_form(layer, slot))
    packed.sqnr = tuple(errors.sqnr.values())
    return packed.num_bytes
