"""Spool: tensors in a file, one behind the other, read back one at a time."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.streaming.files import OutputFile


@dataclass(frozen=True)
class SpooledTensor:
    """One tensor in a file.

    Attributes:
        name: Its name.
        dtype: Its dtype, as `bfloat16`.
        shape: Its shape.
        offset: Where its bytes begin.
        length: Number of these.
        sha256: Their hash.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SpooledTensor:
        """Read what `to_json` returned."""
        return cls(**{**data, "shape": tuple(data["shape"])})


class Spool:
    """A file that tensors are appended to, from its beginning; nothing of it counts before `finish`.

    Args:
        path: The file; what it holds is dropped.

    Raises:
        ExportError: it cannot be written, here and on every use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: list[SpooledTensor] = []
        self._file = OutputFile(path)
        self._length = 0

    def add(self, name: str, tensor: Tensor) -> SpooledTensor:
        """Write a tensor."""
        data = bytes_of(tensor.detach().cpu().contiguous())
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest = hashlib.sha256(data).hexdigest()
        entry = SpooledTensor(name, dtype, tuple(tensor.shape), self._length, len(data), digest)
        self._file.write(data)
        self._length += len(data)
        self.tensors.append(entry)
        return entry

    def finish(self) -> list[SpooledTensor]:
        """Return what it holds, when the disk has it."""
        self._file.sync()
        self._file.close()
        return self.tensors


def read_spooled(path: Path, entry: SpooledTensor) -> Tensor:
    """Read one tensor of a spool.

    Raises:
        CheckpointError: the file is missing, or cut short.
    """
    tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
    data = bytes_of(tensor)
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            found = file.readinto(data)
    except OSError as error:
        raise CheckpointError(f"{path}: tensor {entry.name!r} cannot be read: {error.strerror}") from error
    if found != entry.length:
        raise CheckpointError(
            f"{path}: tensor {entry.name!r} has {found} bytes, written were {entry.length}; remove the folder of "
            "the run and start again"
        )
    return tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    return tensor.flatten().view(torch.uint8).numpy().data
