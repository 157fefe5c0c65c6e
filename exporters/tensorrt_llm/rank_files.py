"""RankFiles: one safetensors file for each rank, written with the memory of one tensor."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from octavo.core.errors import ExportError
from octavo.core.model.read_back import verify_shards
from octavo.core.model.shard_file import ManifestEntry
from octavo.core.model.shard_reader import manifest_name, write_manifest
from octavo.exporters.tensorrt_llm.layout import Layout

_DTYPES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""Safetensors' names, in the order in which its own writer puts tensors: wide dtypes first, then by name."""
_CHUNK_BYTES = 1 << 24


def rank_name(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank{rank}.safetensors"


@dataclass(frozen=True)
class _Spooled:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


class RankFiles:
    """Write `rank0.safetensors`, `rank1.safetensors`, …: the bytes that safetensors' own writer makes.

    Tensors are appended to a file as they come and sorted when it is finished, so that memory is bounded by one
    tensor, and space on the disk by the files and one more.

    Args:
        directory: An existing folder.
        layout: How many ranks there are.
    """

    def __init__(self, directory: Path, layout: Layout) -> None:
        self._directory = directory
        self._spooled: list[dict[str, _Spooled]] = [{} for _ in range(layout.world_size)]
        self._manifests: list[dict[str, ManifestEntry]] = [{} for _ in range(layout.world_size)]

    def add(self, rank: int, name: str, tensor: Tensor) -> None:
        """Take a tensor of a rank.

        Raises:
            ExportError: the rank has a tensor of that name already, or such files do not hold its dtype.
            OSError: it cannot be written.
        """
        spooled = self._spooled[rank]
        if name in spooled:
            raise ExportError(f"tensor {name!r} of rank {rank} would be written twice")
        if tensor.dtype not in _DTYPES:
            raise ExportError(
                f"tensor {name!r} has dtype {tensor.dtype}; files of ranks hold {', '.join(map(str, _DTYPES))}"
            )
        tensor = tensor.detach().cpu().contiguous()
        with self._part(rank).open("ab") as file:
            start = file.tell()
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
        spooled[name] = _Spooled(name, _DTYPES[tensor.dtype], tuple(tensor.shape), start, tensor.nbytes)
        self._manifests[rank][name] = ManifestEntry.of(tensor, rank_name(rank))

    def finish(self) -> list[dict[str, ManifestEntry]]:
        """Put each file in order, read it back, and write its manifest; return the manifests by rank.

        Raises:
            CheckpointError: what was written does not read back.
            OSError: a file cannot be written.
        """
        for rank, spooled in enumerate(self._spooled):
            order = list(_DTYPES.values())
            tensors = sorted(spooled.values(), key=lambda each: (order.index(each.dtype), each.name))
            self._part(rank).touch()
            with self._part(rank).open("rb") as part, (self._directory / rank_name(rank)).open("wb") as file:
                file.write(_header(tensors))
                for each in tensors:
                    part.seek(each.start)
                    _copy(part, file, each.length)
            self._part(rank).unlink()
            verify_shards(self._directory, self._manifests[rank])
            write_manifest(self._directory, self._manifests[rank], manifest_name(rank_name(rank)))
        return self._manifests

    def _part(self, rank: int) -> Path:
        return self._directory / f"rank{rank}.part"


def _header(tensors: list[_Spooled]) -> bytes:
    """Return what stands before the data: the header's length, and the header, padded to a multiple of 8 bytes."""
    entries, end = {}, 0
    for each in tensors:
        offsets = [end, end + each.length]
        entries[each.name] = {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": offsets}
        end += each.length
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length:
        data = source.read(min(length, _CHUNK_BYTES))
        target.write(data)
        length -= len(data)
