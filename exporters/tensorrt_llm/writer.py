"""Writing a model as a TensorRT-LLM checkpoint."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from octavo.core.calibration.calibration_report import calibration_report
from octavo.core.calibration.finalize import finalization_notes
from octavo.core.console import say
from octavo.core.errors import ConfigError, ExportError, UnsupportedError, nearest
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.checkpoint_writer import finalized_as
from octavo.core.model.description import ModelDescription
from octavo.core.model.export_report import ExportReport
from octavo.core.model.model_source import left_out_modules
from octavo.core.model.serving import unstored_quantizers
from octavo.core.model.shard_reader import read_json
from octavo.core.model.sharded import check_whole
from octavo.core.modules import dense_names
from octavo.core.plugins import plugins
from octavo.core.report.files import write_report
from octavo.core.report.run_report import run_report
from octavo.core.report.weight_error import WeightErrors
from octavo.core.report.weight_rows import weight_rows
from octavo.exporters.tensorrt_llm.checkpoint import Checkpoint
from octavo.exporters.tensorrt_llm.dialect import TensorRtLlmDialect
from octavo.exporters.tensorrt_llm.families import family_for
from octavo.exporters.tensorrt_llm.inspection import QuantizedParts, inspect_model
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.model_weights import ModelWeights
from octavo.exporters.tensorrt_llm.rank_files import RankFiles
from octavo.exporters.tensorrt_llm.reader import TensorRtLlmCheckpoint
from octavo.exporters.tensorrt_llm.sharding import shard_tensor

NAME = "tensorrt_llm"
TARGETS = ("trtllm",)
DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Options:
    decoder_type: str | None
    dtype: torch.dtype
    layout: Layout
    target: str | None
    notes: tuple[str, ...]


def export_tensorrt_llm_checkpoint(
    model: nn.Module,
    decoder_type: str | None = None,
    dtype: torch.dtype | None = None,
    export_dir: str | Path | None = None,
    inference_tensor_parallel: int = 1,
    inference_pipeline_parallel: int = 1,
    inference_expert_parallel: int = 1,
    overwrite: bool = False,
    quiet: bool = False,
    target: str | None = None,
) -> ExportReport:
    """Write a model as a TensorRT-LLM checkpoint for its engine builder: config.json and a file for each rank.

    Tensors are those of ModelOpt 0.47, byte for byte. With `target="trtllm"` what its reader takes is written where
    that is something else, and the report lists the differences. The model is finalized for the dialect while it is
    written, block by block, and is as it was afterwards. The folder appears whole or not at all; every tensor is read
    back before. docs/tensorrt-llm.md says what is written.

    Args:
        model: A calibrated model, or one that is not quantized.
        decoder_type: The kind of model in the peer's words (`llama`, `gpt`, `qwen`, …); found out when None.
        dtype: float16 or bfloat16, of the tensors that are not quantized; the model's when None, float16 for another.
        export_dir: A new or empty folder.
        inference_tensor_parallel: Over how many ranks each layer is divided; 0 means 1.
        inference_pipeline_parallel: In how many stages of consecutive blocks the model is cut.
        inference_expert_parallel: Into how many groups the ranks of a stage divide the experts of a layer.
        overwrite: Replace a folder that Octavo wrote.
        quiet: Print no warnings; they are in the report.
        target: `trtllm`, or None for the peer's bytes.

    Raises:
        ConfigError: the target is unknown.
        UnsupportedError: FSDP2 or ZeRO-3 divides the model.
        ModeError: the weights of the model are folded.
        ExportError: the decoder or model type is unknown, a format has no place in this dialect, a quantizer was
            never calibrated, the model cannot be divided so, a tensor is not finite, or the folder cannot be written.
        CheckpointError: what was written does not read back.
    """
    if export_dir is None:
        raise ExportError("export_dir is missing: give the folder to write the checkpoint to")
    if target not in (None, *TARGETS):
        raise ConfigError(
            f"unknown target {target!r} of TensorRT-LLM checkpoints; known: {', '.join(TARGETS)}."
            f"{nearest(str(target), TARGETS)} Other engines read what export_hf_checkpoint writes"
        )
    check_whole(model, "a TensorRT-LLM checkpoint")
    chosen, notes = _dtype(model, dtype)
    layout = Layout(inference_tensor_parallel or 1, inference_pipeline_parallel, inference_expert_parallel)
    options = _Options(decoder_type, chosen, layout, target, notes)
    parts = inspect_model(model, for_reader=target is not None)
    with atomic_folder(Path(export_dir), overwrite) as folder:
        report = _write(model, parts, folder, Path(export_dir), options)
    for warning in report.warnings:
        say(f"warning: {warning}", quiet)
    for difference in report.differences:
        say(f"for {target}: {difference}", quiet)
    return report


def _write(
    model: nn.Module, parts: QuantizedParts, folder: Path, export_dir: Path, options: _Options
) -> ExportReport:
    config, errors = _framework_config(model, options.dtype), WeightErrors()
    family, description = family_for(config, options.decoder_type), describe(model)
    warnings = [*options.notes, *unstored_quantizers(model, TensorRtLlmDialect())]
    with dense_names(model), _finalized(model, parts, options.target):
        source = ModelWeights(model, parts, options.target is not None, config, errors)
        roles = description.renamed(source.modules)
        checkpoint = Checkpoint(source, roles, family, options.dtype, parts.cache, options.target is not None)
        num_tensors, num_bytes = write_checkpoint(checkpoint, folder, options.layout)
        rows = weight_rows(parts.weights, errors.sqnr, calibration_report(model).get("weights", []))
        warnings += [*checkpoint.warnings(), *finalization_notes(model)]
        differences = tuple(checkpoint.differences())
    report = ExportReport(export_dir, num_tensors, num_bytes, tuple(warnings), NAME, differences)
    write_report(folder, run_report(model, rows, report, left_out_modules(model, parts.weights)))
    return report


def _finalized(model: nn.Module, parts: QuantizedParts, target: str | None) -> AbstractContextManager[None]:
    is_quantized = bool(parts.weights) or parts.cache is not None
    return finalized_as(model, NAME, target) if is_quantized else nullcontext()


def describe(model: nn.Module) -> ModelDescription:
    """Return a model in canonical roles.

    Raises:
        ExportError: no family map describes it.
    """
    description = plugins().describe_model(model)
    if description is None:
        raise ExportError(
            f"no family map describes this {type(model).__name__}; names in TensorRT-LLM checkpoints follow from the "
            "roles of its layers (core/model/families)"
        )
    return description


def write_checkpoint(checkpoint: Checkpoint, folder: Path, layout: Layout) -> tuple[int, int]:
    """Write metadata, and every tensor to the files of its ranks; return how many tensors and bytes these hold.

    Raises:
        CheckpointError: what was written does not read back.
    """
    for name, data in checkpoint.metadata(layout).items():
        (folder / name).write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")
    files, num_bytes = RankFiles(folder, layout), 0
    for name, tensor in checkpoint.tensors():
        for rank, (local_name, part) in shard_tensor(name, tensor, checkpoint.config, layout).items():
            files.add(rank, local_name, part)
            num_bytes += part.nbytes
    num_tensors = sum(map(len, files.finish()))
    _check_reads_back(folder)
    return num_tensors, num_bytes


def _check_reads_back(folder: Path) -> None:
    """Open the checkpoint as its users will, where the reader knows the names of the architecture.

    Raises:
        CheckpointError: formats, shapes or scales are not those that config.json says.
    """
    try:
        checkpoint = TensorRtLlmCheckpoint(folder)
    except UnsupportedError:
        return
    checkpoint.activations()
    checkpoint.describe()


def _framework_config(model: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Return the config.json that the framework's checkpoints of the model have."""
    with TemporaryDirectory() as folder:
        if not plugins().write_companions(model, Path(folder), None, dtype):
            raise ExportError(
                f"no plugin knows the config of this {type(model).__name__}; TensorRT-LLM checkpoints are written of "
                "models of a framework that an adapter knows"
            )
        return read_json(Path(folder) / "config.json")


def _dtype(model: nn.Module, dtype: torch.dtype | None) -> tuple[torch.dtype, tuple[str, ...]]:
    """Return the dtype of what is not quantized, and what is to be said of it."""
    if dtype is not None and dtype not in DTYPES:
        raise ExportError(f"dtype of a TensorRT-LLM checkpoint is float16 or bfloat16; found {dtype!r}")
    found = dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())
    if found in DTYPES:
        return found, ()
    return torch.float16, (f"tensors of dtype {str(found).removeprefix('torch.')} are written as float16",)
