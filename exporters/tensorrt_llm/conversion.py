"""Writing another checkpoint as a TensorRT-LLM checkpoint, without its model's weights in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from octavo.core.errors import ExportError, listed
from octavo.core.model.checkpoint_source import NamedSource
from octavo.core.model.description import ModelDescription
from octavo.core.model.expert_layout import layout_in_files
from octavo.core.model.shard_reader import read_json
from octavo.core.plugins import plugins
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
        CheckpointError: what was written does not read back.
    """
    if source.dtype not in DTYPES:
        raise ExportError(
            f"tensors that are not quantized have dtype {str(source.dtype).removeprefix('torch.')}, and float16 or "
            "bfloat16 in TensorRT-LLM checkpoints, which would change them; load the model in one of these, and "
            "quantize and export it again"
        )
    config = read_json(folder / CONFIG_FILE)
    family = family_for(config, None)
    weights, description = _described(source, folder, config)
    checkpoint = Checkpoint(weights, description, family, source.dtype, weights.cache_format, False)
    written = write_checkpoint(checkpoint, folder, layout)
    if left := weights.left():
        raise ExportError(
            f"TensorRT-LLM checkpoints of models of type {config['model_type']!r} have no place for {len(left)} "
            f"tensors of the checkpoint: {listed(left)}; convert it to unified_hf, which holds any tensor"
        )
    return written


def _described(
    source: NamedSource, folder: Path, config: dict[str, object]
) -> tuple[CheckpointWeights, ModelDescription]:
    """Return the tensors, and the model in canonical roles under the names that the tensors have."""
    with torch.device("meta"):
        skeleton = plugins().build_model(folder, source.dtype, False)
    layout = layout_in_files(skeleton, lambda matrix: matrix in source.names)
    weights = CheckpointWeights(source, layout, config)
    return weights, describe(skeleton).renamed(weights.modules)
