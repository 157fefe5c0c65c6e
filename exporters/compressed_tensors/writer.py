"""Writing a quantized model as a compressed-tensors checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from octavo.core.errors import ExportError, listed
from octavo.core.model.activation_scales import scale_from_state
from octavo.core.model.checkpoint_writer import (
    NamedTensors,
    Spelling,
    WriteOptions,
    left_out_modules,
    packed_weight,
    weight_spec,
    write_checkpoint,
)
from octavo.core.model.export_report import ExportReport
from octavo.core.model.exporter import LayerFormat
from octavo.core.model.serving import active_specs, check_exportable
from octavo.core.model.shard_reader import read_json
from octavo.core.modules import QuantModule, quantized_layers
from octavo.exporters.compressed_tensors.formats import Format, format_for
from octavo.exporters.compressed_tensors.metadata import quantization_config
from octavo.exporters.compressed_tensors.spelling import spell

NAME = "compressed_tensors"


def export_compressed_tensors(model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
    """Write a quantized model as a compressed-tensors checkpoint; options are those of `export_hf_checkpoint`.

    Raises:
        ModeError: the model is not quantized.
        ExportError: a quantizer was never calibrated, a format has no place in this dialect, layers have several,
            or the folder cannot be written.
    """
    check_exportable(model)
    chosen = WriteOptions(**options)
    layers = {name: layer for name, layer in quantized_layers(model) if active_specs(layer)}
    layer_format = _one_format(layers)
    known = format_for(layer_format)
    if known is None:
        raise ExportError(
            f"compressed-tensors checkpoints of weights {layer_format.weight}, inputs {layer_format.inputs} are not "
            f"written, found in {listed(list(layers), 2)}; export_hf_checkpoint without a target stores more formats"
        )
    spelling = Spelling(
        NAME,
        layers,
        partial(_layer_tensors, format_name=known.name),
        _no_tensors,
        partial(_write_metadata, model, layers, layer_format, known),
        differences=()
        if chosen.target is None
        else (f"compressed-tensors {known.name} instead of ModelOpt's dialect",),
    )
    return write_checkpoint(model, export_dir, spelling, chosen)


def _one_format(layers: Mapping[str, QuantModule]) -> LayerFormat:
    formats: dict[LayerFormat, list[str]] = {}
    for name, layer in layers.items():
        specs = active_specs(layer)
        weight, inputs = specs.pop("weight_quantizer", []), specs.pop("input_quantizer", [])
        if specs or len(weight) != 1 or len(inputs) > 1:
            raise ExportError(
                f"{name}: this dialect is written for a weight and perhaps its input, of one format each; found "
                f"{ {q: list(map(str, chain)) for q, chain in active_specs(layer).items()} }"
            )
        shape = tuple(layer.quantized_weights()["weight_quantizer"].shape)
        if len(shape) != 2:
            raise ExportError(
                f"{name}: this dialect stores weights of two dims, found shape {shape}; leave it out"
            )
        formats.setdefault(LayerFormat(weight[0], inputs[0] if inputs else None), []).append(name)
    if len(formats) != 1:
        found = "; ".join(
            f"weights {f.weight}, inputs {f.inputs}: {listed(n, 2)}" for f, n in formats.items()
        )
        raise ExportError(f"this dialect is written for one format of all layers; found {found or 'none'}")
    return next(iter(formats))


def _layer_tensors(base: str, layer: QuantModule, format_name: str) -> NamedTensors:
    for suffix, tensor in spell(packed_weight(layer), format_name).items():
        yield f"{base}.{suffix}", tensor
    stage = layer.quantizers()["input_quantizer"].stages()[0]
    if stage.enabled and stage.spec is not None and stage.spec.state:
        scale = scale_from_state(stage.named_state(), stage.spec.element_type.max)
        yield f"{base}.input_scale", scale.reshape(1)


def _no_tensors(modules: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    return iter(())


def _write_metadata(
    model: nn.Module,
    layers: Mapping[str, QuantModule],
    layer_format: LayerFormat,
    known: Format,
    modules: Mapping[str, str],
    folder: Path,
) -> None:
    ignore = [modules.get(name, name) for name in left_out_modules(model, layers)]
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    weight = weight_spec(next(iter(layers.values())))
    config["quantization_config"] = quantization_config(known.name, weight, layer_format.inputs, ignore)
    (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
