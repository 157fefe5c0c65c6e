"""Writing a quantized model as a compressed-tensors checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.errors import ExportError, listed
from octavo.core.model.checkpoint_writer import ModelExport, WriteOptions, write_checkpoint
from octavo.core.model.export_report import ExportReport
from octavo.core.model.exporter import LayerFormat
from octavo.core.model.serving import active_specs, check_exportable, unstored_quantizers
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modules import QuantEmbedding, QuantModule, quantized_layers
from octavo.exporters.compressed_tensors.dialect import CompressedTensorsDialect
from octavo.exporters.compressed_tensors.formats import format_for
from octavo.exporters.compressed_tensors.source_spelling import spelling_of

NAME = CompressedTensorsDialect.name


def export_compressed_tensors(model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
    """Write a quantized model as a compressed-tensors checkpoint; options are those of `export_hf_checkpoint`.

    Raises:
        ModeError: the model is not quantized.
        ExportError: a quantizer was never calibrated, a format has no place in this dialect, layers have several,
            or the folder cannot be written.
    """
    check_exportable(model)
    chosen = WriteOptions(**options)
    weights, layer_format = _weights_of_one_format(model)
    known = format_for(layer_format)
    if known is None:
        raise ExportError(
            f"compressed-tensors checkpoints of weights {layer_format.weight}, inputs {layer_format.inputs} are not "
            f"written, found in {listed(list(weights), 2)}; export_hf_checkpoint without a target stores more formats"
        )
    export = ModelExport(
        NAME,
        weights,
        spelling_of,
        warnings=tuple(unstored_quantizers(model, CompressedTensorsDialect())),
        differences=()
        if chosen.target is None
        else (f"compressed-tensors {known.name} instead of ModelOpt's dialect",),
    )
    return write_checkpoint(model, export_dir, export, chosen)


def _weights_of_one_format(model: nn.Module) -> tuple[dict[str, StoredWeight], LayerFormat]:
    weights: dict[str, StoredWeight] = {}
    formats: dict[LayerFormat, list[str]] = {}
    for name, layer in quantized_layers(model):
        specs = active_specs(layer)
        for slot in layer.weight_slots():
            weight, inputs = specs.pop(slot.quantizer, []), specs.pop(slot.inputs, [])
            if not weight and not inputs:
                continue
            if len(weight) != 1 or len(inputs) > 1:
                raise _unstored(name, layer)
            stored = StoredWeight(name, layer, slot)
            _check_shape(stored)
            weights[stored.name] = stored
            layer_format = LayerFormat(weight[0].unstacked(), inputs[0] if inputs else None)
            formats.setdefault(layer_format, []).append(name)
        if any(CompressedTensorsDialect().has_place_for(layer, quantizer) for quantizer in specs):
            raise _unstored(name, layer)
    if len(formats) != 1:
        found = "; ".join(
            f"weights {f.weight}, inputs {f.inputs}: {listed(n, 2)}" for f, n in formats.items()
        )
        raise ExportError(f"this dialect is written for one format of all layers; found {found or 'none'}")
    return weights, next(iter(formats))


def _unstored(name: str, layer: QuantModule) -> ExportError:
    return ExportError(
        f"{name}: this dialect is written for a weight and perhaps its input, of one format each; found "
        f"{ {q: list(map(str, chain)) for q, chain in active_specs(layer).items()} }"
    )


def _check_shape(weight: StoredWeight) -> None:
    shape = tuple(weight.values.shape)
    if len(shape) != (3 if weight.slot.is_stacked else 2) or isinstance(weight.layer, QuantEmbedding):
        raise ExportError(
            f"{weight.layer_name}: this dialect stores linear layers' weights of two dims, found shape {shape}; "
            "leave it out"
        )
