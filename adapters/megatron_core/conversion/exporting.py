"""Megatron-core's models into Hugging Face checkpoints: rank 0 writes, the others hand it their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from octavo.adapters.megatron_core.conversion.gathered_blocks import GatheredBlocks
from octavo.adapters.megatron_core.conversion.layer_states import (
    FACTOR,
    quantized_layers_of_all_ranks,
    quantizer_tensors,
)
from octavo.adapters.megatron_core.conversion.local import as_chunks, local_tensors
from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.plain_files import write_plain
from octavo.adapters.megatron_core.conversion.quantizers import attach_gathered
from octavo.adapters.megatron_core.conversion.shares import Share, SharedTensors
from octavo.core.errors import ExportError
from octavo.core.model.blocks import blocks_from
from octavo.core.model.export_report import ExportReport
from octavo.core.model.shards import check_shard_limit
from octavo.core.modes.record import last_record
from octavo.core.plugins import plugins

_BY_BLOCKS = ("unified_hf", "compressed_tensors")
_OTHER_MODES = ("fold_weight", "compress")


def export_huggingface(
    model: nn.Module | Sequence[nn.Module],
    original: str | Path,
    export_dir: str | Path,
    exporter: str = "unified_hf",
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    **options: Any,
) -> ExportReport | None:
    """Write a Megatron-core model as a Hugging Face checkpoint, quantized if the model is. All ranks call this.

    A quantized model is written by an exporter as its Hugging Face model would be, quantized in the same way; a plain
    one with the bytes that the ranks hold.

    Rank 0 asks for each block when it writes it: beside its own part of the model and the scales of all layers it has
    two blocks and one shard in memory, the other ranks a copy of one tensor. Rank 0 gathers the whole model where
    factors on inputs (SmoothQuant, AWQ) may be folded into weights all over it, and for exporters that do not write
    block by block (`tensorrt_llm`).

    Args:
        model: This rank's part, in wrappers or not; of interleaved pipelines several.
        original: A folder with the Hugging Face config (and tokenizer) of the model: the checkpoint that it was
            imported from, say. Its weights are not read.
        export_dir: A new or empty folder, which rank 0 can write.
        exporter: Name of the exporter, for a quantized model.
        overwrite: Replace a folder that Octavo wrote.
        max_shard_bytes: Start a new shard rather than exceed this; `tensorrt_llm` writes a file for each rank.
        options: Of the exporter, for a quantized model: `target`, `quiet`, `inference_tensor_parallel`, …

    Returns:
        The report on rank 0, None on the others.

    Raises:
        ExportError: the model is not that of the config, a quantizer was never calibrated, a format has no place in the
            dialect, or the folder cannot be written; on the other ranks, that rank 0 failed.
        UnsupportedError: a part of the model has no counterpart.
        CheckpointError: `original` is no folder of a Hugging Face model.
    """
    check_shard_limit(max_shard_bytes)
    chunks = as_chunks(model)
    _check_modes(chunks)
    layers = quantized_layers_of_all_ranks(chunks)
    source, shared = shared_tensors(chunks, original)
    if dist.get_rank() != 0:
        shared.serve()
        return None
    whole, directory = source.skeleton.model, Path(export_dir)
    with shared.led(), torch.no_grad(), ExitStack() as stack:
        blocks = GatheredBlocks(source, shared)
        if not layers:
            stack.enter_context(blocks_from(whole, blocks))
            return write_plain(source, directory, overwrite, max_shard_bytes)
        attach_gathered(source, layers, shared, _config_of(chunks))
        if exporter in _BY_BLOCKS:
            options = {"tokenizer": source.tokenizer(), "max_shard_bytes": max_shard_bytes, **options}
        if exporter in _BY_BLOCKS and not any(FACTOR in stage for stage in _stages(layers)):
            stack.enter_context(blocks_from(whole, blocks))
        else:
            for block in list(blocks.blocks()):
                stack.enter_context(blocks.materialized(block))
        return plugins().exporter(exporter).export(whole, directory, overwrite=overwrite, **options)


def shared_tensors(chunks: Sequence[nn.Module], original: str | Path) -> tuple[Original, SharedTensors]:
    """Return the Hugging Face model in the dtype of the ranks' weights, and what all ranks have of it."""
    found = local_tensors(chunks)
    source = Original.of(original, next(iter(found.values())).parameter.dtype)
    own = {}
    for name, local in found.items():
        tensor = source.tensors.get(name)
        is_divided = tensor is not None and tensor.is_divided
        place = (local.rank, local.ranks) if is_divided else (0, 1)
        own[name] = (local.parameter, Share.of(local.parameter, *place))
    return source, SharedTensors({**own, **quantizer_tensors(chunks)})


def _check_modes(chunks: Sequence[nn.Module]) -> None:
    """Refuse a model whose weights are not its own any more.

    Raises:
        ExportError: they are folded or packed.
    """
    found = [mode for chunk in chunks for mode in _OTHER_MODES if last_record(chunk, mode) is not None]
    if found:
        raise ExportError(
            f"{found[0]} was applied to the model, whose original weights are gone; export it before"
        )


def _config_of(chunks: Sequence[nn.Module]) -> Mapping[str, Any]:
    """Return what the model was quantized with."""
    records = [last_record(chunk, "quantize") for chunk in chunks]
    return next((record.config for record in records if record is not None), {})


def _stages(layers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every stage of every quantizer with what it has beside its format."""
    return [
        {name: value for name, value in stage.items() if value is not None}
        for layer in layers.values()
        for stages in layer["quantizers"].values()
        for stage in stages
    ]
