"""Megatron-core's models into Hugging Face checkpoints: rank 0 writes, the others hand it their parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from octavo.adapters.megatron_core.conversion.gathered_blocks import GatheredBlocks
from octavo.adapters.megatron_core.conversion.local import as_chunks, local_tensors
from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.shares import Share, SharedTensors
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.blocks import blocks_from
from octavo.core.model.export_report import ExportReport
from octavo.core.model.model_source import ModelSource
from octavo.core.model.shard_reader import write_manifest
from octavo.core.model.shards import SafetensorsWriter, check_shard_limit, verify_shards
from octavo.core.plugins import plugins
from octavo.core.report.weight_error import WeightErrors

PLAIN = "huggingface"
"""What a report calls a checkpoint that is not quantized."""


def export_plain(
    model: nn.Module | Sequence[nn.Module],
    original: str | Path,
    export_dir: str | Path,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
) -> ExportReport | None:
    """Write a model that is not quantized, or no more, as a Hugging Face checkpoint. All ranks call this.

    Every tensor has the bytes that the ranks hold. Rank 0 has one block and one shard in memory beside its own part
    of the model, the others one tensor.

    Args:
        model: This rank's part, in wrappers or not; of interleaved pipelines several.
        original: A folder with the Hugging Face config (and tokenizer) of the model: the checkpoint that it was
            imported from, say. Its weights are not read.
        export_dir: A new or empty folder, which rank 0 can write.
        overwrite: Replace a folder that Octavo wrote.
        max_shard_bytes: Start a new shard rather than exceed this.

    Returns:
        The report on rank 0, None on the others.

    Raises:
        ExportError: the model is not that of the config, a tensor is not finite, or the folder cannot be written; on
            the other ranks, that rank 0 failed.
        CheckpointError, UnsupportedError: `original` is no folder of a model that Megatron-core knows.
    """
    check_shard_limit(max_shard_bytes)
    found = local_tensors(as_chunks(model))
    dtype = next(iter(found.values())).parameter.dtype
    source = Original.of(original, dtype)
    shared = SharedTensors(
        {
            name: (t.parameter, Share.of(t.parameter, *_division(source, name, t.rank, t.ranks)))
            for name, t in found.items()
        }
    )
    if dist.get_rank() != 0:
        shared.serve()
        return None
    with shared.led():
        return _write_plain(source, shared, Path(export_dir), overwrite, max_shard_bytes)


def _division(original: Original, name: str, rank: int, ranks: int) -> tuple[int, int]:
    """Return (rank, ranks) of a tensor; of one that is not divided every rank has the only part."""
    tensor = original.tensors.get(name)
    return (rank, ranks) if tensor is None or tensor.is_divided else (0, 1)


def _write_plain(
    original: Original, shared: SharedTensors, export_dir: Path, overwrite: bool, max_shard_bytes: int
) -> ExportReport:
    model, num_bytes = original.skeleton.model, 0
    with atomic_folder(export_dir, overwrite) as folder, torch.no_grad():
        write_companions(original, folder)
        writer = SafetensorsWriter(folder, max_shard_bytes)
        with blocks_from(model, GatheredBlocks(original, shared)):
            source = ModelSource(model, {}, original.skeleton.layout, None, WeightErrors())
            for item in source.tensors():
                name, tensor = item  # type: ignore[misc]  # nothing is quantized
                writer.add(name, tensor)
                num_bytes += tensor.nbytes
        manifest = writer.finish()
        verify_shards(folder, manifest)
        write_manifest(folder, manifest)
    return ExportReport(export_dir, len(manifest), num_bytes, (), PLAIN)


def write_companions(original: Original, folder: Path) -> None:
    """Write the files beside the weights, as they are beside the original's."""
    plugins().write_companions(original.skeleton.model, folder, original.tokenizer(), original.dtype)
