"""How the dialect writes what a checkpoint is made from: its tensors and metadata."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from octavo.core.errors import ExportError, listed
from octavo.core.model.activation_scales import scale_from_state
from octavo.core.model.checkpoint_source import CheckpointSource, PackedWeight
from octavo.core.model.exporter import LayerFormat
from octavo.core.model.spelled_files import Spelling
from octavo.exporters.compressed_tensors.formats import Format, format_for
from octavo.exporters.compressed_tensors.metadata import quantization_config
from octavo.exporters.compressed_tensors.spelling import spell


def spelling_of(source: CheckpointSource) -> Spelling:
    """Return how `source` is written.

    Raises:
        ExportError: layers have several formats, or one that has no place in this dialect; the cache is quantized,
            or an input has a factor; layers are named.
    """
    _check_unsmoothed(source)
    if source.cache is not None:
        raise ExportError(
            f"a quantized cache is not written as compressed-tensors yet, found {source.cache}; use unified_hf"
        )
    layer, known = _one_format(source)
    config = quantization_config(known.name, layer.weight, layer.inputs, source.excluded)
    return Spelling(
        partial(_spelled, format_name=known.name), {"config.json": {"quantization_config": config}}
    )


def _one_format(source: CheckpointSource) -> tuple[LayerFormat, Format]:
    formats: dict[LayerFormat, list[str]] = {}
    for name, layer in source.layers.items():
        formats.setdefault(layer, []).append(name)
    shown = "; ".join(f"{layer}: {listed(names, 2)}" for layer, names in formats.items())
    if len(formats) != 1:
        raise ExportError(f"this dialect is written for one format of all layers; found {shown or 'none'}")
    (layer,) = formats
    known = format_for(layer)
    if known is None:
        raise ExportError(f"compressed-tensors checkpoints of this format are not written: {shown}")
    return layer, known


def _check_unsmoothed(source: CheckpointSource) -> None:
    corrected = [name for name, layer in source.layers.items() if layer.smoothing == "low_rank"]
    if corrected:
        raise ExportError(
            f"compressed-tensors checkpoints have no place for low-rank corrections, found in {listed(corrected, 3)}; "
            "use export_hf_checkpoint without a target"
        )
    kept = [name for name, layer in source.layers.items() if layer.smoothing == "scaled"]
    if kept:
        raise ExportError(
            f"compressed-tensors checkpoints have no place for a pre_quant_scale, and those of {len(kept)} layers "
            f"could not be folded into what makes their inputs: {listed(kept, 3)}. Quantize these layers without "
            "smoothing, or use export_hf_checkpoint without a target"
        )


def _spelled(weight: PackedWeight, format_name: str) -> dict[str, Tensor]:
    if weight.is_stack:
        raise ExportError(
            f"{weight.module} holds experts in one tensor, for which compressed-tensors has no form; use unified_hf"
        )
    return spell(weight.codes, format_name) | _input_scale(weight)


def _input_scale(weight: PackedWeight) -> dict[str, Tensor]:
    inputs = weight.inputs
    if inputs is None or inputs.spec is None or not inputs.state:
        return {}
    return {"input_scale": scale_from_state(inputs.state, inputs.spec.element_type.max).reshape(1)}
