"""Writing a quantized model as a unified Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.finalize import finalized, finalized_for
from octavo.core.console import say
from octavo.core.errors import ExportError, listed
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.blocks import InMemoryBlocks
from octavo.core.model.checkpoint_layout import CheckpointLayout, Place
from octavo.core.model.module_names import module_names
from octavo.core.model.shard_reader import read_json, write_manifest
from octavo.core.model.shards import SafetensorsWriter, verify_shards
from octavo.core.modules import tensor_quantizers
from octavo.core.plugins import plugins
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect
from octavo.exporters.unified_hf.export_warnings import export_warnings
from octavo.exporters.unified_hf.inspection import ExportableModel, inspect_model
from octavo.exporters.unified_hf.metadata import flat_metadata, nested_metadata
from octavo.exporters.unified_hf.stored_weight import activation_scale


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        directory: The checkpoint.
        num_tensors: Number of tensors in its shards.
        num_bytes: Bytes of these tensors.
        warnings: What the checkpoint does not hold, or nobody reads.
    """

    directory: Path
    num_tensors: int
    num_bytes: int
    warnings: tuple[str, ...]


def export_hf_checkpoint(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    export_dir: str | Path | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    quiet: bool = False,
) -> ExportReport:
    """Write a quantized model as a unified Hugging Face checkpoint, byte for byte as ModelOpt 0.47 would.

    The model is finalized for the dialect while it is written and is as it was afterwards. The folder appears
    whole or not at all; every tensor is read back before.

    Args:
        model: A quantized, calibrated model.
        dtype: Float dtype of the tensors that are not quantized, and of the config. When None, every tensor keeps
            its own, and the config has that of the first parameter.
        export_dir: A new or empty folder.
        tokenizer: Saved beside the weights when given.
        overwrite: Replace a folder that is not empty.
        max_shard_bytes: Start a new shard rather than exceed this.
        quiet: Print no warnings; they are in the report.

    Raises:
        ModeError: the model is not quantized, or its weights are folded.
        ExportError: a quantizer was never calibrated, a format has no place in this dialect, the model was read
            from a quantized checkpoint, or the folder cannot be written.
    """
    if export_dir is None:
        raise ExportError("export_dir is missing: give the folder to write the checkpoint to")
    if dtype is not None and not dtype.is_floating_point:
        raise ExportError(f"dtype is that of the tensors that are not quantized, a float one; found {dtype}")
    parts = inspect_model(model)
    warnings = tuple(export_warnings(model, parts))
    with atomic_folder(Path(export_dir), overwrite) as folder:
        plugins().write_companions(model, folder, tokenizer, dtype or _dtype_of(model))
        writer, num_bytes = SafetensorsWriter(folder, max_shard_bytes), 0
        with _finalized(model):
            layout = _layout(model, parts)
            modules = module_names(layout.names)
            _write_metadata(model, parts, layout, modules, folder)
            for name, tensor in chain(_tensors(model, parts, layout, dtype), _cache_scales(parts, modules)):
                writer.add(name, tensor)
                num_bytes += tensor.nbytes
        manifest = writer.finish()
        verify_shards(folder, manifest)
        write_manifest(folder, manifest)
    for warning in warnings:
        say(f"warning: {warning}", quiet)
    return ExportReport(Path(export_dir), len(manifest), num_bytes, warnings)


def _finalized(model: nn.Module) -> AbstractContextManager[None]:
    dialect = UnifiedHfDialect()
    other = finalized_for(model)
    if other not in (None, dialect.name):
        raise ExportError(f"the model is finalized for {other}; call octavo.unfinalize(model) first")
    return nullcontext() if other == dialect.name else finalized(model, dialect)


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _layout(model: nn.Module, parts: ExportableModel) -> CheckpointLayout:
    """Return where every tensor of the model is in checkpoints, quantizer state left out."""
    quantizers = tuple(f"{name}." for name, _ in tensor_quantizers(model))
    names = [name for name in model.state_dict() if not name.startswith(quantizers)]
    layout = plugins().checkpoint_layout(model, names)
    whole = [
        name for name, weight in parts.weights.items() if weight.slot.is_stacked and name not in layout.parts
    ]
    if whole:
        raise ExportError(
            f"checkpoints of this {type(model).__name__} hold the experts of {listed(whole, 2)} in one tensor, for "
            "which this dialect has no form; leave the experts out ({'quantizer_name': '*.experts.*', 'enable': False})"
        )
    return layout


def _tensors(
    model: nn.Module, parts: ExportableModel, layout: CheckpointLayout, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor but the cache's scales, block by block; tied ones once, under their first name."""
    source = InMemoryBlocks(model, plugins().describe_model(model))
    values = model.state_dict(keep_vars=True)
    written: set[int] = set()
    places: dict[str, list[tuple[str, Place]]] = {}
    for new, place in layout.places().items():
        places.setdefault(place.name, []).append((new, place))
    for block in source.blocks():
        with source.materialized(block):
            for name in block.tensors:
                if name not in places or id(values[name]) in written:
                    continue
                written.add(id(values[name]))
                weight = parts.weights.get(name)
                if weight is None:
                    value = values[name].detach()
                    value = value.to(dtype) if dtype and value.is_floating_point() else value
                    yield from ((new, place.of(value).contiguous()) for new, place in places[name])
                elif name in layout.parts:
                    yield from weight.parts(layout.parts[name])
                else:
                    yield from weight.tensors(layout.names[name])


def _cache_scales(parts: ExportableModel, modules: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the scales of keys and values; the layers that make these carry them, where there are such."""
    for name, layer in parts.attention.items():
        for letter in "kv":
            scale = activation_scale(layer, f"{letter}_bmm_quantizer")
            if scale is not None:
                module = modules.get(f"{name}.{letter}_proj", modules.get(name, name))
                yield f"{module}.{letter}_scale", scale


def _write_metadata(
    model: nn.Module,
    parts: ExportableModel,
    layout: CheckpointLayout,
    modules: Mapping[str, str],
    folder: Path,
) -> None:
    places = layout.places()
    layers = {
        new.removesuffix(".weight"): (weight.scheme, weight.spec)
        for new, place in places.items()
        if (weight := parts.weights.get(place.name)) is not None
    }
    exclude = [
        modules.get(name, name) for name, module in model.named_modules() if _is_left_out(name, module, parts)
    ]
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    config["quantization_config"] = flat_metadata(layers, parts.kv, exclude)
    for file, data in (
        ("config.json", config),
        ("hf_quant_config.json", nested_metadata(layers, parts.kv, exclude)),
    ):
        (folder / file).write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def _is_left_out(name: str, module: nn.Module, parts: ExportableModel) -> bool:
    """Whether a module has a `weight`, or stacked weights, and none of them is quantized."""
    own = dict(module.named_parameters(name, recurse=False))
    weights = [
        n for n, p in own.items() if p.dim() == 3 or (p.dim() > 1 and n.rpartition(".")[2] == "weight")
    ]
    return bool(weights) and not any(weight in parts.weights for weight in weights)
