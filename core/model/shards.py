"""ShardWriter: tensors in, safetensors shards with an index and a manifest out."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from octavo.core.errors import ExportError
from octavo.core.model.background import file_threads, flush_to_disk
from octavo.core.model.read_back import check_shard
from octavo.core.model.shard_file import ManifestEntry

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def check_shard_limit(max_shard_bytes: object) -> None:
    """Refuse what is no size of a shard.

    Raises:
        ExportError: it is not a whole number, at least 1.
    """
    if not isinstance(max_shard_bytes, int) or max_shard_bytes < 1:
        raise ExportError(f"max_shard_bytes is a whole number, at least 1; found {max_shard_bytes!r}")


class ShardWriter(Protocol):
    """Takes tensors one by one, in any order, and writes them as they come."""

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; it may be written at once or with later ones, and is not kept after that."""

    def finish(self) -> dict[str, ManifestEntry]:
        """Write what is left and the index; return the manifest."""


class SafetensorsWriter:
    """Write safetensors shards as Hugging Face names them.

    Memory is bounded by one shard. Tensors are hashed by other threads, until their shard is written: what is added
    must not change before.

    Args:
        directory: An existing folder.
        max_shard_bytes: Start a new shard rather than exceed this; a larger tensor gets a shard of its own.
        reads_back: Read each shard when it is written, compare it, and have the disk take it, while the next ones
            come.
    """

    def __init__(
        self, directory: Path, max_shard_bytes: int = 5_000_000_000, reads_back: bool = False
    ) -> None:
        self._directory = directory
        self._max_shard_bytes = max_shard_bytes
        self._reads_back = reads_back
        self._pending: dict[str, Tensor] = {}
        self._pending_memory: set[int] = set()
        self._pending_bytes = 0
        self._total_bytes = 0
        self._num_shards = 0
        self._manifest: dict[str, ManifestEntry] = {}
        self._threads = file_threads()
        self._hashing: dict[str, Future[ManifestEntry]] = {}  # of what is pending
        self._flushing: list[Future[None]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor.

        Raises:
            ExportError: a tensor of that name was added before.
            OSError: a shard cannot be written.
            CheckpointError: a shard was to be read back, and differs from what was written; the tensor is named.
        """
        if name in self._manifest or name in self._pending:
            raise ExportError(f"tensor {name!r} would be written twice")
        tensor = tensor.detach().cpu().contiguous()
        if self._pending and self._pending_bytes + tensor.nbytes > self._max_shard_bytes:
            self._flush()
        memory = tensor.untyped_storage().data_ptr()
        if memory in self._pending_memory:  # two names for one memory, which safetensors refuses
            tensor = tensor.clone()
        self._pending[name] = tensor
        self._pending_memory.add(memory)
        self._pending_bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes
        self._hashing[name] = self._threads.submit(ManifestEntry.of, tensor, shard=str(self._num_shards + 1))

    def finish(self) -> dict[str, ManifestEntry]:
        """Write what is left, name the shards by their number, and write an index when there are several.

        Raises:
            OSError, CheckpointError: as `add` does.
        """
        if self._pending or not self._num_shards:
            self._flush()
        for flushed in self._flushing:
            flushed.result()
        self._threads.shutdown()
        names = {str(n + 1): self._shard_name(n + 1) for n in range(self._num_shards)}
        for number, name in names.items():
            self._part(number).rename(self._directory / name)
        manifest = {name: replace(entry, shard=names[entry.shard]) for name, entry in self._manifest.items()}
        if self._num_shards > 1:
            weight_map = {name: manifest[name].shard for name in sorted(manifest)}
            index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
            (self._directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return manifest

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        self._num_shards += 1
        part = self._part(str(self._num_shards))
        try:
            save_file(self._pending, part, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, which everything else reports as an OSError
            raise OSError(f"{part.name}: {error}") from error
        part.chmod(self._directory.stat().st_mode & 0o666)  # safetensors makes files private
        if self._reads_back:
            self._flushing.append(self._threads.submit(flush_to_disk, part))
            check_shard(part, self._pending, self._threads)
        self._manifest |= {name: entry.result() for name, entry in self._hashing.items()}
        self._pending, self._pending_memory, self._pending_bytes, self._hashing = {}, set(), 0, {}

    def _part(self, number: str) -> Path:
        return self._directory / f"shard-{number}.part"

    def _shard_name(self, number: int) -> str:
        if self._num_shards == 1:
            return SINGLE_NAME
        return f"model-{number:05d}-of-{self._num_shards:05d}.safetensors"
