"""Files of a checkpoint in any dialect, from what it is written from and the dialect's spelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.model.checkpoint_source import CheckpointSource, PackedWeight
from octavo.core.model.shard_file import ManifestEntry
from octavo.core.model.shard_reader import read_json, write_manifest
from octavo.core.model.shards import SafetensorsWriter
from octavo.core.model.stored_weight import part_name
from octavo.core.plugins import plugins

NamedTensors = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Spelling:
    """How a dialect writes one source.

    Attributes:
        spell: Returns {suffix: tensor} of a weight: its codes and scales, and what lies beside them.
        metadata: Fields of the dialect's JSON files, by file; what else a file holds stays.
        other_tensors: Tensors that are no weight's: scales of the cache.
    """

    spell: Callable[[PackedWeight], dict[str, Tensor]]
    metadata: Mapping[str, Mapping[str, Any]]
    other_tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenShards:
    """What was written: the manifest, and the bytes of all tensors."""

    manifest: dict[str, ManifestEntry]
    num_bytes: int


def write_spelled(
    source: CheckpointSource, spelling: Spelling, folder: Path, max_shard_bytes: int
) -> WrittenShards:
    """Write the shards and the JSON files of `source` into `folder`; read every tensor back and compare it.

    Raises:
        ExportError: two tensors have one name.
        OSError: a shard cannot be written.
        CheckpointError: a tensor differs from what was written.
    """
    write_metadata(spelling, folder)
    writer, num_bytes = SafetensorsWriter(folder, max_shard_bytes, reads_back=True), 0
    for name, tensor in chain(spelled_tensors(source, spelling), spelling.other_tensors.items()):
        writer.add(name, tensor)
        num_bytes += tensor.nbytes
    return WrittenShards(writer.finish(), num_bytes)


def write_metadata(spelling: Spelling, folder: Path) -> None:
    """Write the dialect's fields into the JSON files of `folder`; what else these hold stays."""
    for file, fields in spelling.metadata.items():
        path = folder / file
        data = (read_json(path) if path.exists() else {}) | dict(fields)
        path.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def write_checked(
    source: CheckpointSource, spelling: Spelling, folder: Path, max_shard_bytes: int, exporter: str
) -> tuple[int, int]:
    """Write as `write_spelled` does and check as `check_written`; return number and bytes of the tensors."""
    written = write_spelled(source, spelling, folder, max_shard_bytes)
    check_written(folder, written, exporter)
    return len(written.manifest), written.num_bytes


def check_written(folder: Path, written: WrittenShards, exporter: str) -> None:
    """Write the manifest of what was written and compared; open the checkpoint as its users will.

    Raises:
        CheckpointError: it does not read back.
    """
    write_manifest(folder, written.manifest)
    checkpoint = plugins().exporter(exporter).open(folder)
    checkpoint.activations()
    checkpoint.describe()


def spelled_tensors(source: CheckpointSource, spelling: Spelling) -> NamedTensors:
    """Yield the tensors of a checkpoint, in their order, but for `spelling.other_tensors`."""
    for item in source.tensors():
        if isinstance(item, PackedWeight):
            for suffix, tensor in spelling.spell(item).items():
                yield part_name(item.module, suffix, item.is_stack), tensor
        else:
            yield item
