"""Writing a quantized model as a unified Hugging Face checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.core.errors import ExportError
from octavo.core.model.checkpoint_writer import ModelExport, WriteOptions, write_checkpoint
from octavo.core.model.export_report import ExportReport
from octavo.core.model.serving import model_serving
from octavo.core.plugins import plugins
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect
from octavo.exporters.unified_hf.export_warnings import export_warnings
from octavo.exporters.unified_hf.inspection import ExportableModel, inspect_model
from octavo.exporters.unified_hf.source_spelling import spelling_of
from octavo.exporters.unified_hf.spelling import is_square


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
    whole or not at all; every tensor is read back before. Of a model that FSDP2 or ZeRO-3 divides, every rank calls
    this: rank 0 writes, and no rank has more than a block at a time.

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
    export = model_export(model, target, () if served is None else tuple(served.sentences("unknown")))
    return write_checkpoint(model, Path(export_dir), export, options)


def model_export(model: nn.Module, target: str | None, notes: tuple[str, ...] = ()) -> ModelExport:
    """Return what of a calibrated model, or of one of its blocks, this dialect writes.

    Raises:
        ModeError, ExportError: as in `export_hf_checkpoint`.
    """
    parts = inspect_model(model)
    peer = target is None
    return ModelExport(
        UnifiedHfDialect.name,
        parts.weights,
        partial(spelling_of, peer=peer),
        (*export_warnings(model, parts), *notes),
        () if peer else _four_dim_scales(parts),
        stores_stacks=True,
    )


def _four_dim_scales(parts: ExportableModel) -> tuple[str, ...]:
    """Return a sentence for each weight that is a single square block."""
    return tuple(
        f"{weight.layer_name}.weight_scale: shape [1, 1, 1, 1] instead of []"
        for weight in parts.weights.values()
        if is_square(weight.spec) and set(weight.spec.granularity.scale_shape(weight.shape[-2:])) == {1}
    )
