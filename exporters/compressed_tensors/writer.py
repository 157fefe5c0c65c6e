"""Writing a quantized model as a compressed-tensors checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from octavo.core.errors import ExportError
from octavo.core.model.activation_scales import scale_from_state
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_writer import (
    Spelling,
    WriteOptions,
    left_out_modules,
    write_checkpoint,
)
from octavo.core.model.export_report import ExportReport
from octavo.core.model.serving import unstored_quantizers
from octavo.core.model.shard_reader import read_json
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.packed import PackedTensor
from octavo.exporters.compressed_tensors.dialect import CACHE_QUANTIZERS, CompressedTensorsDialect
from octavo.exporters.compressed_tensors.formats import kind
from octavo.exporters.compressed_tensors.input_scales import spell_input
from octavo.exporters.compressed_tensors.inspection import (
    ExportableModel,
    check_folded,
    inspect_model,
)
from octavo.exporters.compressed_tensors.metadata import FP8_CACHE, described_groups, quantization_config
from octavo.exporters.compressed_tensors.spelling import spell

NAME = "compressed_tensors"


def export_compressed_tensors(model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
    """Write a quantized model as a compressed-tensors checkpoint; options are those of `export_hf_checkpoint`.

    Raises:
        ModeError: the model is not quantized.
        ExportError: a quantizer was never calibrated, a format has no place in this dialect, or the folder cannot
            be written.
    """
    chosen = WriteOptions(**options)
    parts = inspect_model(model)
    names = ", ".join(dict.fromkeys(known.name for _, known in parts.formats.values()))
    spelling = Spelling(
        NAME,
        parts.weights,
        _spelled(parts),
        _input_scale,
        partial(_cache_scales, parts),
        partial(_write_metadata, model, parts),
        warnings=tuple(unstored_quantizers(model, CompressedTensorsDialect())),
        differences=()
        if chosen.target is None
        else (f"compressed-tensors {names} instead of ModelOpt's dialect",),
    )
    return write_checkpoint(model, export_dir, spelling, chosen)


def _spelled(parts: ExportableModel) -> Callable[[PackedTensor, bool], dict[str, Tensor]]:
    """Return how weights are spelled, by their kind.

    Raises:
        ExportError: weights of one kind are stored in two formats, as their inputs are quantized or not.
    """
    names: dict[str, dict[str, str]] = {}
    for weight, (layer, known) in parts.formats.items():
        names.setdefault(kind(layer.weight), {}).setdefault(known.name, parts.weights[weight].layer_name)
    for found in names.values():
        if len(found) > 1:
            shown = ", ".join(f"{name} for {layer}" for name, layer in found.items())
            raise ExportError(
                f"weights of one format are stored as {shown}, as their inputs are quantized or not; quantize the "
                "inputs of all of them or of none"
            )
    return lambda packed, _: spell(packed, next(iter(names[kind(packed.spec)])))


def _input_scale(weight: StoredWeight) -> dict[str, Tensor]:
    stage = weight.layer.quantizers()[weight.slot.inputs].stages()[0]
    if not stage.enabled or stage.spec is None or not stage.spec.state:
        return {}
    return spell_input(stage.spec, stage.named_state())


def _cache_scales(parts: ExportableModel, modules: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for name, layer in parts.attention.items():
        for quantizer in CACHE_QUANTIZERS:
            state = layer.quantizers()[quantizer].stages()[0].named_state()
            scale = scale_from_state(state, FP8_CACHE.element_type.max).reshape(1)
            yield f"{modules.get(name, name)}.{quantizer[0]}_scale", scale


def _write_metadata(
    model: nn.Module,
    parts: ExportableModel,
    layout: CheckpointLayout,
    modules: Mapping[str, str],
    folder: Path,
) -> None:
    check_folded(parts.weights)
    layers = {
        new.removesuffix(".weight"): parts.formats[place.name]
        for new, place in layout.places().items()
        if place.name in parts.weights
    }
    ignore = [modules.get(name, name) for name in left_out_modules(model, parts.weights)]
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    config["quantization_config"] = quantization_config(described_groups(layers), parts.cache, ignore)
    (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
