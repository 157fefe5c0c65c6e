"""Writing another checkpoint as a TensorRT-LLM checkpoint, without its model's weights in memory."""

from __future__ import annotations

from pathlib import Path

from octavo.core.errors import CheckpointError, ExportError, listed
from octavo.core.model.checkpoint_source import NamedSource
from octavo.core.model.shard_reader import read_json
from octavo.core.model.skeleton import Skeleton
from octavo.exporters.tensorrt_llm.checkpoint import Checkpoint
from octavo.exporters.tensorrt_llm.checkpoint_weights import CheckpointWeights
from octavo.exporters.tensorrt_llm.families import family_for
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.rank_reader import CONFIG_FILE
from octavo.exporters.tensorrt_llm.writer import DTYPES, describe, write_checkpoint


def write_converted(source: NamedSource, folder: Path, layout: Layout) -> tuple[int, int]:
    """Write `source` into `folder`; return the number of tensors of all ranks and their bytes.

    Args:
        source: What is written, in this dialect's numbers.
        folder: Where the framework's config.json is, in whose place comes TensorRT-LLM's.
        layout: Over which ranks it is divided.

    Raises:
        ExportError: the model's type is unknown, a format has no place in this dialect, the model cannot be divided
            so, or the checkpoint has tensors that such checkpoints do not hold; they are named.
        CheckpointError: tensors of the model are missing, or what was written does not read back.
    """
    if source.dtype not in DTYPES:
        raise ExportError(
            f"tensors that are not quantized have dtype {str(source.dtype).removeprefix('torch.')}, and float16 or "
            "bfloat16 in TensorRT-LLM checkpoints, which would change them; load the model in one of these, and "
            "quantize and export it again"
        )
    config = read_json(folder / CONFIG_FILE)
    family = family_for(config, None)
    skeleton = Skeleton.of(folder, source.dtype, lambda matrix: matrix in source.names)
    if missing := skeleton.missing(source.names):
        raise CheckpointError(f"the checkpoint lacks tensors of its model: {listed(missing)}; copy it again")
    weights = CheckpointWeights(source, skeleton.layout, config)
    description = describe(skeleton.model).renamed(weights.modules)
    checkpoint = Checkpoint(weights, description, family, source.dtype, weights.cache_format, False)
    written = write_checkpoint(checkpoint, folder, layout)
    if left := weights.left():
        raise ExportError(
            f"TensorRT-LLM checkpoints of models of type {config['model_type']!r} have no place for {len(left)} "
            f"tensors of the checkpoint: {listed(left)}; convert it to unified_hf, which holds any tensor"
        )
    return written
