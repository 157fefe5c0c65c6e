"""The files of a checkpoint as a reader meets them: config.json, the index, and the tensors of the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor

from octavo.core.errors import listed
from octavo.core.model.shard_file import open_shard
from octavo.core.model.shard_reader import ShardReader, read_json
from octavo.core.model.shards import INDEX_NAME
from octavo.core.verification.finding import Finding, warning

EXPORT_AGAIN = "Copy or export the checkpoint again."


class StoredTensors(Protocol):
    """Tensors by name, in whatever files they lie."""

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors spells it: `F8_E4M3`."""

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""


class StoredFiles:
    """config.json and the tensors of a checkpoint folder.

    Attributes:
        directory: The folder.
        config: Its config.json.

    Raises:
        CheckpointError: as `ShardReader` and `read_json` do. File and tensor are named.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_json(directory / "config.json")
        self._shards = ShardReader(directory)
        self.names = frozenset(self._shards.names())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shards.shape(name)

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors spells it: `F8_E4M3`."""
        return self._shards.stored_dtype(name)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            CheckpointError: it is not what the checkpoint's manifest says.
        """
        return self._shards.tensor(name)

    def unlisted(self) -> Iterator[Finding]:
        """Yield tensors of shards that the index does not list: some readers load them, others do not."""
        index = self.directory / INDEX_NAME
        if not index.exists():
            return
        for shard in sorted(set(read_json(index)["weight_map"].values())):
            extra = sorted(set(open_shard(self.directory / shard).keys()) - self.names)
            if extra:
                yield warning(
                    str(self.directory / shard),
                    f"tensors that {INDEX_NAME} does not list: {listed(extra)}",
                    "every tensor listed once",
                    EXPORT_AGAIN,
                )
