"""Writing a quantized model as a unified Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.errors import ExportError
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_writer import (
    NamedTensors,
    Spelling,
    WriteOptions,
    left_out_modules,
    write_checkpoint,
)
from octavo.core.model.export_report import ExportReport
from octavo.core.model.serving import model_serving
from octavo.core.model.shard_reader import read_json
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modules import QuantModule
from octavo.core.packed import PackedTensor
from octavo.core.plugins import plugins
from octavo.core.quantizers import TensorQuantizer
from octavo.exporters.unified_hf.activation_scales import divisor_of, scale_from_state
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect
from octavo.exporters.unified_hf.export_warnings import export_warnings
from octavo.exporters.unified_hf.inspection import ExportableModel, inspect_model
from octavo.exporters.unified_hf.metadata import flat_metadata, nested_metadata
from octavo.exporters.unified_hf.spelling import is_square, spell
from octavo.exporters.unified_hf.stack_spelling import spell_stack


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
        overwrite: Replace a folder that Octavo wrote.
        max_shard_bytes: Start a new shard rather than exceed this.
        quiet: Print no warnings; they are in the report.
        target: Engine that will serve the checkpoint: `vllm`, `sglang`, `trtllm` or `transformers`.

    Raises:
        ConfigError: the target is unknown.
        ModeError: the model is not quantized.
        ExportError: a quantizer was never calibrated, a format has no place in this dialect, the target refuses
            it, the model was read from a quantized checkpoint, a tensor is not finite, or the folder cannot be
            written.
        CheckpointError: what was written does not read back.
    """
    if export_dir is None:
        raise ExportError("export_dir is missing: give the folder to write the checkpoint to")
    options = WriteOptions(dtype, tokenizer, overwrite, max_shard_bytes, quiet, target)
    served = None if target is None else model_serving(model, target)
    if served is not None and served.exporter != UnifiedHfDialect.name:
        return plugins().exporter(served.exporter).export(model, Path(export_dir), **vars(options))
    parts = inspect_model(model)
    peer = target is None
    spelling = Spelling(
        UnifiedHfDialect.name,
        parts.weights,
        partial(_spelled, peer=peer),
        _companions,
        partial(_cache_scales, parts),
        partial(_write_metadata, model, parts),
        (*export_warnings(model, parts), *(served.sentences("unknown") if served else ())),
        () if peer else _four_dim_scales(parts),
        stores_stacks=True,
    )
    return write_checkpoint(model, Path(export_dir), spelling, options)


def _spelled(packed: PackedTensor, is_segment: bool, peer: bool) -> dict[str, Tensor]:
    if packed.spec.is_stacked:
        return spell_stack(packed)
    return spell(packed, peer and not is_segment)  # in segments the peer's square blocks keep four dims, too


def _companions(weight: StoredWeight) -> dict[str, Tensor]:
    """Return what lies beside codes and scales: the input's scale and factor, the scale of a second format."""
    found = {
        "input_scale": _scale(weight.layer, weight.slot.inputs),
        "pre_quant_scale": weight.pre_quant_scale,
        "svdquant_lora_a": None if weight.low_rank is None else weight.low_rank[0],
        "svdquant_lora_b": None if weight.low_rank is None else weight.low_rank[1],
        "weight_scale_2": None if weight.then is None else _static_scale(weight.then, weight.slot.quantizer),
    }
    return {suffix: tensor for suffix, tensor in found.items() if tensor is not None}


def _cache_scales(parts: ExportableModel, modules: Mapping[str, str]) -> NamedTensors:
    """Yield scales and biases of keys and values; the layers that make these carry them, where there are such."""
    for name, layer in parts.attention.items():
        for letter in "kv":
            module = modules.get(f"{name}.{letter}_proj", modules.get(name, name))
            scale, bias = (find(layer, f"{letter}_bmm_quantizer") for find in (_scale, _bias))
            if scale is not None:
                yield f"{module}.{letter}_scale", scale
            if bias is not None:
                yield f"{module}.{letter}_bias", bias


def _scale(layer: QuantModule, quantizer_name: str) -> Tensor | None:
    """Return the scale of an activation quantizer that is on and static, else None."""
    return _static_scale(layer.quantizers()[quantizer_name].stages()[0], quantizer_name)


def _bias(layer: QuantModule, quantizer_name: str) -> Tensor | None:
    """Return the bias of an activation quantizer that is on, in the dtype of the layer, or None."""
    stage = layer.quantizers()[quantizer_name].stages()[0]
    if not stage.enabled or stage.bias_value is None:
        return None
    return stage.bias_value.to(next(layer.parameters()).dtype)


def _static_scale(stage: TensorQuantizer, quantizer_name: str) -> Tensor | None:
    if not stage.enabled or stage.spec is None or not stage.spec.state:
        return None
    return scale_from_state(stage.named_state(), divisor_of(quantizer_name, stage.spec))


def _write_metadata(
    model: nn.Module,
    parts: ExportableModel,
    layout: CheckpointLayout,
    modules: Mapping[str, str],
    folder: Path,
) -> None:
    layers = {
        new.removesuffix(".weight"): (parts.schemes[place.name], parts.weights[place.name].spec)
        for new, place in layout.places().items()
        if place.name in parts.weights
    }
    exclude = [modules.get(name, name) for name in left_out_modules(model, parts.weights)]
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    config["quantization_config"] = flat_metadata(layers, parts.kv, exclude, parts.has_bias)
    for file, data in (
        ("config.json", config),
        ("hf_quant_config.json", nested_metadata(layers, parts.kv, exclude, parts.has_bias)),
    ):
        (folder / file).write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def _four_dim_scales(parts: ExportableModel) -> tuple[str, ...]:
    """Return a sentence for each weight that is a single square block."""
    return tuple(
        f"{weight.layer_name}.weight_scale: shape [1, 1, 1, 1] instead of []"
        for weight in parts.weights.values()
        if is_square(weight.spec)
        and set(weight.spec.granularity.scale_shape(weight.values.shape[-2:])) == {1}
    )
