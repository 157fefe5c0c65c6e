"""Dividing a TensorRT-LLM checkpoint over other ranks, without the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError, ExportError
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.export_report import ExportReport
from octavo.core.model.shard_reader import MANIFEST_NAME, read_json
from octavo.exporters.tensorrt_llm.layer_numbers import renumbered
from octavo.exporters.tensorrt_llm.layout import Layout, section_of
from octavo.exporters.tensorrt_llm.rank_files import RankFiles
from octavo.exporters.tensorrt_llm.rank_reader import CONFIG_FILE, LAYERS_FILE, RankReader
from octavo.exporters.tensorrt_llm.sharding import EMBEDDING, HEAD, shard_tensor

_WITH_HEAD = ("ForCausalLM", "LMHeadModel")  # how architectures are called that have one


def reshard_tensorrt_llm(
    directory: str | Path,
    out_dir: str | Path,
    tp_size: int = 1,
    pp_size: int = 1,
    moe_ep_size: int = 1,
    overwrite: bool = False,
) -> ExportReport:
    """Write a TensorRT-LLM checkpoint for other ranks: from any layout to any, with the memory of one tensor.

    No number changes. Repeated key/value heads and rows that pad the vocabulary come and go as the layout needs; a
    head that is the token embedding is written out where no rank has both, and remains so.

    Args:
        directory: The checkpoint: config.json and a file for each rank.
        out_dir: A folder that appears when everything is written and was read back.
        tp_size: Ranks that divide each layer.
        pp_size: Stages of consecutive layers.
        moe_ep_size: Groups of ranks that divide the experts of a layer.
        overwrite: Replace a folder that Octavo wrote.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged.
        ExportError: the model cannot be divided so, or the folder cannot be written, or is the checkpoint's.
        UnsupportedError: the format cannot describe the model in this layout, or how ranks divide a layer is not known.
    """
    source, out = RankReader(Path(directory)), Path(out_dir)
    if source.directory.resolve().is_relative_to(out.resolve()):
        raise ExportError(f"{out} holds the checkpoint {source.directory}; give another folder")
    layout = Layout(tp_size, pp_size, moe_ep_size)
    config = _with_head(source)
    layout.check(config)
    with atomic_folder(out, overwrite) as folder:
        _write_metadata(source, config, layout, folder)
        files = RankFiles(folder, layout)
        for name in source.names():
            _move(name, source, files, config, layout)
        manifests = files.finish()
        num_bytes = sum(path.stat().st_size for path in folder.glob("rank*.safetensors"))
    return ExportReport(out, sum(map(len, manifests)), num_bytes, (), "tensorrt_llm", ())


def _move(name: str, source: RankReader, files: RankFiles, config: Mapping[str, Any], layout: Layout) -> None:
    """Write a tensor for other ranks; returning lets go of it before the next one is read."""
    for rank, (local_name, part) in shard_tensor(name, source.tensor(name), config, layout).items():
        files.add(rank, local_name, part)


def _with_head(source: RankReader) -> dict[str, Any]:
    """Return the config; whether the head is the token embedding is what the files say."""
    has_one = str(source.config.get("architecture", "")).endswith(_WITH_HEAD)
    if has_one and HEAD not in source and EMBEDDING in source:
        return {**source.config, "share_embedding_table": True}
    return source.config


def _write_metadata(source: RankReader, config: dict[str, Any], layout: Layout, folder: Path) -> None:
    written = layout.apply_to(config)
    quantization = section_of(config, "quantization")
    if patterns := quantization.get("exclude_modules"):
        _check_patterns(patterns, source)
        excluded = list(renumbered(dict.fromkeys(patterns), config, source.layout, layout))
        written["quantization"] = {**quantization, "exclude_modules": excluded}
    _write_json(folder / CONFIG_FILE, written)
    if (source.directory / LAYERS_FILE).exists():
        _write_json(folder / LAYERS_FILE, _layer_formats(source, layout))
    for path in sorted(source.directory.iterdir()):
        if path.is_file() and not _is_own(path.name):
            shutil.copyfile(path, folder / path.name)


def _check_patterns(patterns: object, source: RankReader) -> None:
    if not isinstance(patterns, list) or any(not isinstance(pattern, str) for pattern in patterns):
        raise CheckpointError(
            f"exclude_modules in {source.directory / CONFIG_FILE} must be a list of patterns, found {patterns!r}"
        )


def _layer_formats(source: RankReader, layout: Layout) -> dict[str, Any]:
    path = source.directory / LAYERS_FILE
    formats = read_json(path)
    layers = formats.get("quantized_layers")
    if not isinstance(layers, Mapping):
        raise CheckpointError(f"{path} must hold 'quantized_layers' by module, found {layers!r}")
    return {**formats, "quantized_layers": renumbered(layers, source.config, source.layout, layout)}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=4), encoding="utf-8")  # as the field's writers do, byte for byte


def _is_own(name: str) -> bool:
    """Whether a file is written anew: metadata, tensors and their manifests."""
    stem = MANIFEST_NAME.removesuffix(".json")
    return name in (CONFIG_FILE, LAYERS_FILE) or name.startswith(stem) or name.endswith(".safetensors")
