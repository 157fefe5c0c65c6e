"""Writing a quantized model as a unified Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.finalize import finalized, finalized_for, target_differences
from octavo.core.console import say
from octavo.core.errors import ExportError
from octavo.core.formats import QuantSpec
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.blocks import InMemoryBlocks
from octavo.core.model.export_report import ExportReport
from octavo.core.model.module_names import module_names
from octavo.core.model.serving import model_serving
from octavo.core.model.shard_reader import read_json, write_manifest
from octavo.core.model.shards import SafetensorsWriter, verify_shards
from octavo.core.modules import QuantModule, tensor_quantizers
from octavo.core.packed import PackedTensor
from octavo.core.plugins import plugins
from octavo.exporters.unified_hf.activation_scales import divisor_of, scale_from_state
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect
from octavo.exporters.unified_hf.export_warnings import export_warnings
from octavo.exporters.unified_hf.inspection import ExportableModel, inspect_model
from octavo.exporters.unified_hf.metadata import flat_metadata, nested_metadata
from octavo.exporters.unified_hf.spelling import is_square, spell


def export_hf_checkpoint(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    export_dir: str | Path | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    quiet: bool = False,
    target: str | None = None,
) -> ExportReport:
    """Write a quantized model as a unified Hugging Face checkpoint, byte for byte as ModelOpt 0.47 would.

    With a target, what that engine loads is written, in the dialect it loads it from, and the report lists how
    that differs from the peer's bytes.

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
        target: Engine that will serve the checkpoint: `vllm`, `sglang`, `trtllm` or `transformers`.

    Raises:
        ConfigError: the target is unknown.
        ModeError: the model is not quantized.
        ExportError: a quantizer was never calibrated, a format has no place in this dialect, the target refuses
            it, the model was read from a quantized checkpoint, or the folder cannot be written.
    """
    if export_dir is None:
        raise ExportError("export_dir is missing: give the folder to write the checkpoint to")
    if dtype is not None and not dtype.is_floating_point:
        raise ExportError(f"dtype is that of the tensors that are not quantized, a float one; found {dtype}")
    served = None if target is None else model_serving(model, target)
    if served is not None and served.exporter != UnifiedHfDialect.name:
        options = {"dtype": dtype, "tokenizer": tokenizer, "overwrite": overwrite, "quiet": quiet}
        options |= {"target": target, "max_shard_bytes": max_shard_bytes}
        return plugins().exporter(served.exporter).export(model, Path(export_dir), **options)
    parts = inspect_model(model)
    warnings = (*export_warnings(model, parts), *(served.sentences("unknown") if served else ()))
    with atomic_folder(Path(export_dir), overwrite) as folder:
        plugins().write_companions(model, folder, tokenizer, dtype or _dtype_of(model))
        writer, num_bytes = SafetensorsWriter(folder, max_shard_bytes), 0
        with _finalized(model, target):
            names = _checkpoint_names(model)
            modules = module_names(names)
            _write_metadata(model, parts, modules, folder)
            for name, tensor in chain(
                _tensors(model, parts, names, dtype, target is None), _cache_scales(parts, modules)
            ):
                writer.add(name, tensor)
                num_bytes += tensor.nbytes
            differences = target_differences(model) + (_four_dim_scales(parts) if target else ())
        manifest = writer.finish()
        verify_shards(folder, manifest)
        write_manifest(folder, manifest)
    for warning in warnings:
        say(f"warning: {warning}", quiet)
    for difference in differences:
        say(f"for {target}: {difference}", quiet)
    return ExportReport(
        Path(export_dir), len(manifest), num_bytes, warnings, UnifiedHfDialect.name, differences
    )


def _finalized(model: nn.Module, target: str | None) -> AbstractContextManager[None]:
    name = UnifiedHfDialect(target).name
    other = finalized_for(model)
    if other not in (None, name):
        raise ExportError(f"the model is finalized for {other}; call octavo.unfinalize(model) first")
    return nullcontext() if other == name else finalized(model, UnifiedHfDialect.name, target)


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _checkpoint_names(model: nn.Module) -> Mapping[str, str]:
    """Return {tensor name: its name in checkpoints}, quantizer state left out."""
    quantizers = tuple(f"{name}." for name, _ in tensor_quantizers(model))
    names = [name for name in model.state_dict() if not name.startswith(quantizers)]
    return plugins().checkpoint_names(model, names)


def _tensors(
    model: nn.Module, parts: ExportableModel, names: Mapping[str, str], dtype: torch.dtype | None, peer: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor but the cache's scales, block by block; tied ones once, under their first name."""
    source = InMemoryBlocks(model, plugins().describe_model(model))
    values = model.state_dict(keep_vars=True)
    written: set[int] = set()
    for block in source.blocks():
        with source.materialized(block):
            for name in block.tensors:
                if name not in names or id(values[name]) in written:
                    continue
                written.add(id(values[name]))
                layer_name, _, own_name = name.rpartition(".")
                base = names[name].removesuffix(f".{own_name}")
                if own_name == "weight" and layer_name in parts.layers:
                    yield from _layer_tensors(base, parts.layers[layer_name][0], peer)
                else:
                    value = values[name].detach()
                    yield names[name], value.to(dtype) if dtype and value.is_floating_point() else value


def _layer_tensors(base: str, layer: QuantModule, peer: bool) -> Iterator[tuple[str, Tensor]]:
    (stage,) = layer.quantizers()["weight_quantizer"].stages()
    weight = layer.quantized_weights()["weight_quantizer"].detach()
    packed = PackedTensor.pack(weight, stage.state_tensors(), _weight_spec(layer))
    for suffix, tensor in spell(packed, peer).items():
        yield f"{base}.{suffix}", tensor
    scale = _scale(layer, "input_quantizer")
    if scale is not None:
        yield f"{base}.input_scale", scale


def _cache_scales(parts: ExportableModel, modules: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the scales of keys and values; the layers that make these carry them, where there are such."""
    for name, layer in parts.attention.items():
        for letter in "kv":
            scale = _scale(layer, f"{letter}_bmm_quantizer")
            if scale is not None:
                module = modules.get(f"{name}.{letter}_proj", modules.get(name, name))
                yield f"{module}.{letter}_scale", scale


def _scale(layer: QuantModule, quantizer_name: str) -> Tensor | None:
    """Return the scale of an activation quantizer that is on and static, else None."""
    stage = layer.quantizers()[quantizer_name].stages()[0]
    if not stage.enabled or stage.spec is None or not stage.spec.state:
        return None
    return scale_from_state(stage.named_state(), divisor_of(quantizer_name, stage.spec))


def _write_metadata(
    model: nn.Module, parts: ExportableModel, modules: Mapping[str, str], folder: Path
) -> None:
    layers = {modules[name]: (scheme, _weight_spec(layer)) for name, (layer, scheme) in parts.layers.items()}
    exclude = [
        modules.get(name, name)
        for name, module in model.named_modules()
        if name not in parts.layers and getattr(getattr(module, "weight", None), "ndim", 0) > 1
    ]
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    config["quantization_config"] = flat_metadata(layers, parts.kv, exclude)
    for file, data in (
        ("config.json", config),
        ("hf_quant_config.json", nested_metadata(layers, parts.kv, exclude)),
    ):
        (folder / file).write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def _four_dim_scales(parts: ExportableModel) -> tuple[str, ...]:
    """Return a sentence for each weight that is a single square block."""
    return tuple(
        f"{name}.weight_scale: shape [1, 1, 1, 1] instead of []"
        for name, (layer, _) in parts.layers.items()
        if is_square(_weight_spec(layer))
        and set(
            _weight_spec(layer).granularity.scale_shape(layer.quantized_weights()["weight_quantizer"].shape)
        )
        == {1}
    )


def _weight_spec(layer: QuantModule) -> QuantSpec:
    spec = layer.quantizers()["weight_quantizer"].stages()[0].spec
    assert spec is not None  # noqa: S101 (the layer has a scheme)
    return spec
