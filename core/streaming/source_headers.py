"""What the shards of a checkpoint say that they hold: read once, and checked before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError, listed
from octavo.core.model.shard_reader import read_json
from octavo.core.model.shards import INDEX_NAME, SINGLE_NAME

FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
_LONGEST = 100_000_000  # bytes of a header, safetensors' own limit


@dataclass(frozen=True)
class SourceTensor:
    """A tensor as a shard's header has it."""

    shard: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SourceHeaders:
    """The tensors of a checkpoint.

    Attributes:
        directory: Its folder.
        tensors: By name.
        digests: {shard: its size and a hash of its header}.
        stamps: {shard: its size and when it was changed last, in ns}.
    """

    directory: Path
    tensors: Mapping[str, SourceTensor]
    digests: Mapping[str, str]
    stamps: Mapping[str, tuple[int, int]]

    @classmethod
    def read(cls, directory: Path) -> SourceHeaders:
        """Read and check the headers of all shards.

        Raises:
            CheckpointError: a shard is missing, cut short or damaged, a tensor has an unknown dtype, is in two shards,
                or is in the index and not in its shard, or the other way round. File and tensor are named.
        """
        index = _index(directory)
        tensors: dict[str, SourceTensor] = {}
        digests = {}
        for shard in sorted(set(index.values())) if index is not None else [SINGLE_NAME]:
            path = directory / shard
            wanted = next((name for name, home in (index or {}).items() if home == shard), None)
            header, digests[shard] = _header(path, wanted)
            for name, described in header.items():
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {name!r} is in two shards, {tensors[name].shard} and {shard} of {directory}; which "
                        "one counts cannot be known. Copy or write the checkpoint again"
                    )
                tensors[name] = _tensor(path, name, described)
        if index is not None:
            _check_index(directory, index, tensors)
        return cls(directory, tensors, digests, {shard: _stamp(directory / shard) for shard in digests})

    def check_unchanged(self) -> None:
        """Refuse a source that is not what it was.

        Raises:
            CheckpointError: a shard has changed, or is gone; it is named.
        """
        for shard, stamp in self.stamps.items():
            found = _stamp(self.directory / shard)
            if found != stamp:
                raise CheckpointError(
                    f"{self.directory / shard} has changed since the run began: {found[0]} bytes, before {stamp[0]}. "
                    "What is finished was made of the file before; put that back and go on with resume=True "
                    "(--resume), or start again"
                )

    def where(self, name: str) -> str:
        """Return the file and the name of a tensor, for messages."""
        return f"{self.directory / self.tensors[name].shard}: tensor {name!r}"


def _stamp(path: Path) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _index(directory: Path) -> dict[str, str] | None:
    """Return {tensor: shard}, or None where there is one file without an index."""
    path = directory / INDEX_NAME
    if not path.exists():
        if not (directory / SINGLE_NAME).exists():
            raise CheckpointError(
                f"{directory} holds neither {SINGLE_NAME} nor {INDEX_NAME}; streaming reads safetensors checkpoints"
            )
        return None
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(_is_plain(shard) for shard in index.values()):
        raise CheckpointError(
            f"{path} must hold a 'weight_map' of tensor to plain file name, found {index!r:.200}"
        )
    return index


def _is_plain(shard: object) -> bool:
    return isinstance(shard, str) and Path(shard).name == shard


def _header(path: Path, wanted: str | None) -> tuple[dict[str, Any], str]:
    """Return the tensors that a shard's header describes, and what tells the shard from others."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= _LONGEST else b""
        size = path.stat().st_size
    except OSError as error:
        needed = "" if wanted is None else f", in which the index has tensor {wanted!r}"
        raise CheckpointError(f"{path}{needed}, cannot be read: {error.strerror}") from error
    try:
        header = json.loads(text)
        described = {name: dict(value) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file: its header cannot be read ({error})"
        ) from error
    for name, tensor in described.items():
        end = 8 + length + _end(path, name, tensor)
        if end > size:
            raise CheckpointError(
                f"{path}: tensor {name!r} ends at byte {end}, and the file has {size}; it is cut short. Copy it again"
            )
    return described, f"{size} bytes, header {hashlib.sha256(text).hexdigest()[:16]}"


def _end(path: Path, name: str, described: Mapping[str, Any]) -> int:
    try:
        return int(described["data_offsets"][1])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: tensor {name!r} has no whole 'data_offsets' ({error!r})") from error


def _tensor(path: Path, name: str, described: Mapping[str, Any]) -> SourceTensor:
    dtype, shape = described.get("dtype"), described.get("shape")
    if dtype not in _BYTES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has the dtype {dtype!r}, which is not known; known: {', '.join(_BYTES)}"
        )
    if not isinstance(shape, list) or not all(isinstance(length, int) and length >= 0 for length in shape):
        raise CheckpointError(f"{path}: tensor {name!r} has the shape {shape!r}, which is none")
    count = _BYTES[dtype]
    for length in shape:
        count *= length
    start, end = described["data_offsets"]
    if end - start != count:
        raise CheckpointError(
            f"{path}: tensor {name!r}, {dtype} {shape}, has {end - start} bytes in the file, expected {count}"
        )
    return SourceTensor(path.name, dtype, tuple(shape))


def _check_index(directory: Path, index: Mapping[str, str], tensors: Mapping[str, SourceTensor]) -> None:
    for name, shard in index.items():
        found = tensors[name].shard if name in tensors else None
        if found != shard:
            where = "in none" if found is None else f"in {found}"
            raise CheckpointError(
                f"{directory / INDEX_NAME} has tensor {name!r} in {shard}, and it is {where} of the shards"
            )
    unlisted = sorted(tensors.keys() - index.keys())
    if unlisted:
        raise CheckpointError(
            f"{directory / tensors[unlisted[0]].shard} holds tensors that {INDEX_NAME} does not name: "
            f"{listed(unlisted)}"
        )
