"""The files of a Hugging Face checkpoint that is not quantized."""

from __future__ import annotations

from pathlib import Path

from octavo.adapters.megatron_core.conversion.original import Original
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.export_report import ExportReport
from octavo.core.model.model_source import ModelSource
from octavo.core.model.shard_reader import write_manifest
from octavo.core.model.shards import SafetensorsWriter
from octavo.core.plugins import plugins
from octavo.core.report.weight_error import WeightErrors

PLAIN = "huggingface"
"""What a report calls the writer of such a checkpoint."""


def write_plain(original: Original, export_dir: Path, overwrite: bool, max_shard_bytes: int) -> ExportReport:
    """Write every tensor as it is, block by block; all are read back before the folder appears.

    Raises:
        ExportError: a tensor is not finite, or the folder cannot be written.
        CheckpointError: what was written does not read back.
    """
    model, num_bytes = original.skeleton.model, 0
    with atomic_folder(export_dir, overwrite) as folder:
        plugins().write_companions(model, folder, original.tokenizer(), original.dtype)
        writer = SafetensorsWriter(folder, max_shard_bytes, reads_back=True)
        for item in ModelSource(model, {}, original.skeleton.layout, None, WeightErrors()).tensors():
            if isinstance(item, tuple):  # nothing is quantized
                name, tensor = item
                writer.add(name, tensor)
                num_bytes += tensor.nbytes
        manifest = writer.finish()
        write_manifest(folder, manifest)
    return ExportReport(export_dir, len(manifest), num_bytes, (), PLAIN)
