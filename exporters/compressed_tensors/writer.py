"""Writing a quantized model as a compressed-tensors checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.model.checkpoint_writer import ModelExport, WriteOptions, write_checkpoint
from octavo.core.model.export_report import ExportReport
from octavo.core.model.serving import unstored_quantizers
from octavo.exporters.compressed_tensors.dialect import CompressedTensorsDialect
from octavo.exporters.compressed_tensors.inspection import inspect_model
from octavo.exporters.compressed_tensors.source_spelling import spelling_of

NAME = CompressedTensorsDialect.name


def export_compressed_tensors(model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
    """Write a quantized model as a compressed-tensors checkpoint; options are those of `export_hf_checkpoint`.

    Raises:
        ModeError: the model is not quantized.
        ExportError: a quantizer was never calibrated, a format has no place in this dialect, or the folder cannot
            be written.
    """
    chosen = WriteOptions(**options)
    return write_checkpoint(model, export_dir, model_export(model, chosen.target), chosen)


def model_export(model: nn.Module, target: str | None) -> ModelExport:
    """Return what of a calibrated model, or of one of its blocks, this dialect writes.

    Raises:
        ModeError, ExportError: as in `export_compressed_tensors`.
    """
    parts = inspect_model(model)
    names = ", ".join(dict.fromkeys(known.name for _, known in parts.formats.values()))
    return ModelExport(
        NAME,
        parts.weights,
        spelling_of,
        warnings=tuple(unstored_quantizers(model, CompressedTensorsDialect())),
        differences=() if target is None else (f"compressed-tensors {names} instead of ModelOpt's dialect",),
    )
