"""How the dialect writes what a checkpoint is made from: its tensors, scales of the cache, and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from octavo.core.errors import ExportError, listed
from octavo.core.model.activation_scales import scale_from_state
from octavo.core.model.checkpoint_source import CheckpointSource, PackedWeight
from octavo.core.model.exporter import LayerFormat
from octavo.core.model.spelled_files import Spelling
from octavo.exporters.compressed_tensors.formats import Format, format_for
from octavo.exporters.compressed_tensors.input_scales import spell_input
from octavo.exporters.compressed_tensors.metadata import FP8_CACHE, described_groups, quantization_config
from octavo.exporters.compressed_tensors.spelling import spell


def spelling_of(source: CheckpointSource) -> Spelling:
    """Return how `source` is written.

    Raises:
        ExportError: no weight is quantized, or a format of weights or of the cache has no place in this dialect, or
            a correction of weights or a factor on inputs; layers are named.
    """
    _check_unsmoothed(source)
    if source.cache not in (None, FP8_CACHE):
        raise ExportError(f"this dialect is written with a cache of {FP8_CACHE}; found {source.cache}")
    formats = _formats(source)
    groups = described_groups({name: (source.layers[name], known) for name, known in formats.items()})
    config = quantization_config(groups, source.cache, source.excluded)
    return Spelling(
        partial(_spelled, formats=formats),
        {"config.json": {"quantization_config": config}},
        _cache_scales(source),
    )


def _formats(source: CheckpointSource) -> dict[str, Format]:
    """Return the format of every layer."""
    if not source.layers:
        raise ExportError(
            "this dialect is written for models with quantized weights of linear layers; found none"
        )
    found: dict[str, Format] = {}
    unknown: dict[LayerFormat, list[str]] = {}
    for name, layer in source.layers.items():
        known = format_for(layer)
        if known is None:
            unknown.setdefault(layer, []).append(name)
        else:
            found[name] = known
    if unknown:
        shown = "; ".join(f"{layer}: {listed(names, 2)}" for layer, names in unknown.items())
        raise ExportError(f"compressed-tensors checkpoints of this format are not written: {shown}")
    return found


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


def _spelled(weight: PackedWeight, formats: Mapping[str, Format]) -> dict[str, Tensor]:
    if weight.is_stack:
        raise ExportError(
            f"{weight.module} holds experts in one tensor, for which compressed-tensors has no form; use unified_hf"
        )
    inputs = weight.inputs
    tensors = spell(weight.codes, formats[weight.module].name)
    if inputs is None or inputs.spec is None or not inputs.state:
        return tensors
    return tensors | spell_input(inputs.spec, inputs.state)


def _cache_scales(source: CheckpointSource) -> dict[str, Tensor]:
    """Return the scales of keys and values, which attention layers have."""
    scales = {}
    for name, state in source.cache_states().items():
        if state.bias_value is not None:
            raise ExportError(
                f"{name} has a bias, for which compressed-tensors has no place; convert into another dialect"
            )
        attention, _, quantizer = name.rpartition(".")
        scale = scale_from_state(state.state, FP8_CACHE.element_type.max)
        scales[f"{attention}.{quantizer[0]}_scale"] = scale.reshape(1)
    return scales
