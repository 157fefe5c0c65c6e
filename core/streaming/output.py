"""The output of a run while it grows: spools of finished parts, the shards made of them, and the journal of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError, ExportError
from octavo.core.model.shard_file import ManifestEntry
from octavo.core.streaming import files
from octavo.core.streaming.activations import SavedActivations
from octavo.core.streaming.journal import Journal
from octavo.core.streaming.records import PartRecord
from octavo.core.streaming.shard_files import Piece, shards_of, write_shard
from octavo.core.streaming.spool import Spool, SpooledTensor

CHECKPOINT = "checkpoint"


class GrowingOutput:
    """A folder in which a checkpoint grows part by part.

    A part counts from the moment on that its line is in the journal; files of others are dropped when it is opened.

    Args:
        folder: The folder of the run.
        journal: Its journal.
        limit: Bytes of a shard; a larger tensor gets one of its own.

    Raises:
        CheckpointError: a file that the journal names is missing, or has another size.
    """

    def __init__(self, folder: Path, journal: Journal, limit: int) -> None:
        self.folder = folder
        self.checkpoint = folder / CHECKPOINT
        self._journal = journal
        self._limit = limit
        self._read: list[list[SpooledTensor]] = []
        files.make_folder(self.checkpoint)
        self._drop_unknown()
        self._check_files()

    @property
    def finished(self) -> dict[str, PartRecord]:
        """The records of finished parts, by the part's name, in order."""
        return {e["name"]: PartRecord.from_json(e["record"]) for e in self._journal.of_kind("part")}

    def spool(self) -> Spool:
        """Return the spool for the next part."""
        return Spool(self._spool_path(len(self._journal.of_kind("part"))))

    def activations(self, limit: int) -> SavedActivations:
        """Return a store for what the next part returns."""
        return SavedActivations(self._activations_path(len(self._journal.of_kind("part"))), limit)

    def last_activations(self, limit: int) -> SavedActivations | None:
        """Return what the last finished part returned; None where that was not kept."""
        parts = self._journal.of_kind("part")
        if not parts or parts[-1]["activations"] is None:
            return None
        return SavedActivations.opened(
            self._activations_path(len(parts) - 1), parts[-1]["activations"], limit
        )

    def commit(
        self, name: str, spool: Spool, record: PartRecord, activations: SavedActivations | None = None
    ) -> None:
        """Finish a part: it lasts when this returns.

        Raises:
            ExportError: a tensor was written before, or the disk does not take it.
        """
        known = {tensor.name for _, tensor in self._tensors()}
        twice = next((tensor.name for tensor in spool.tensors if tensor.name in known), None)
        if twice is not None:
            raise ExportError(f"tensor {twice!r} would be written twice")
        tensors = [tensor.to_json() for tensor in spool.finish()]
        saved = None if activations is None else activations.finish()
        files.sync(self.folder)
        self._journal.add("part", name=name, tensors=tensors, record=record.to_json(), activations=saved)
        self._drop_unknown()

    def write_shards(self, is_last: bool = False) -> None:
        """Write every shard that is complete; with the last part, all of them."""
        done = len(self._journal.of_kind("shard"))
        shards = self._shards()
        for number, pieces in enumerate(shards if is_last else shards[:-1], start=1):
            if number > done:
                path = self.shard_part(number)
                write_shard(path, pieces)
                files.sync(self.checkpoint)
                self._journal.add("shard", number=number, bytes=path.stat().st_size)
        self._drop_unknown()

    def shard_part(self, number: int) -> Path:
        """Return where a shard is while their number is not known."""
        return self.checkpoint / f"shard-{number}.part"

    def manifest(self) -> dict[str, ManifestEntry]:
        """Return what the shards hold, once all are written; a shard is called by its number."""
        return {
            piece.tensor.name: ManifestEntry(
                str(number), piece.tensor.dtype, piece.tensor.shape, piece.tensor.sha256
            )
            for number, pieces in enumerate(self._shards(), start=1)
            for piece in pieces
        }

    def num_bytes(self) -> int:
        """Return the bytes of all tensors of finished parts."""
        return sum(tensor.length for _, tensor in self._tensors())

    def _tensors(self) -> Iterator[tuple[int, SpooledTensor]]:
        for entry in self._journal.of_kind("part")[len(self._read) :]:
            self._read.append([SpooledTensor.from_json(tensor) for tensor in entry["tensors"]])
        for index, tensors in enumerate(self._read):
            yield from ((index, tensor) for tensor in tensors)

    def _shards(self) -> list[list[Piece]]:
        pieces = {tensor.name: Piece(self._spool_path(index), tensor) for index, tensor in self._tensors()}
        shards = shards_of([piece.tensor for piece in pieces.values()], self._limit)
        return [[pieces[tensor.name] for tensor in shard] for shard in shards]

    def _needed(self) -> set[Path]:
        """Return the spools that shards still have to be made of, and the activations that the next part reads."""
        done = len(self._journal.of_kind("shard"))
        needed = {piece.spool for shard in self._shards()[done:] for piece in shard}
        parts = self._journal.of_kind("part")
        if parts and parts[-1]["activations"] is not None:
            needed.add(self._activations_path(len(parts) - 1))
        return needed

    def _drop_unknown(self) -> None:
        needed = self._needed()
        for path in (*self.folder.glob("part-*.bin"), *self.folder.glob("activations-*.bin")):
            if path not in needed:
                files.remove(path)

    def _check_files(self) -> None:
        sizes = dict.fromkeys(self._needed(), 0)
        parts = self._journal.of_kind("part")
        for index, entry in enumerate(parts):
            for path, saved in (
                (self._spool_path(index), entry["tensors"]),
                (self._activations_path(index), entry["activations"] or []),
            ):
                if path in sizes:
                    sizes[path] = sum(tensor["length"] for tensor in saved)
        for path, size in sizes.items():
            found = path.stat().st_size if path.exists() else None
            if found != size:
                state = "missing" if found is None else f"{found} bytes long"
                raise CheckpointError(
                    f"{path} is {state}, and the journal has it with {size} bytes; remove {self.folder} and start again"
                )

    def _spool_path(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.bin"

    def _activations_path(self, index: int) -> Path:
        return self.folder / f"activations-{index:05d}.bin"

    def entry(self, kind: str) -> dict[str, Any] | None:
        """Return the newest entry of a kind in the journal, or None."""
        return next(iter(reversed(self._journal.of_kind(kind))), None)
