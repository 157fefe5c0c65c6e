"""Shards of a checkpoint put together from spools, byte for byte as the safetensors library writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.core.streaming.files import OutputFile
from octavo.core.streaming.spool import SpooledTensor

# How safetensors spells dtypes. It writes the wider ones first, in this order, and those of one dtype by name.
_DTYPES = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_ORDER = {dtype: position for position, dtype in enumerate(_DTYPES)}
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Piece:
    """A tensor of a shard, and the spool that has it."""

    spool: Path
    tensor: SpooledTensor


def write_shard(path: Path, pieces: Sequence[Piece]) -> None:
    """Write a safetensors file, and return when the disk has it.

    Raises:
        ExportError: it cannot be written.
    """
    ordered = sorted(pieces, key=lambda piece: (_ORDER[piece.tensor.dtype], piece.tensor.name))
    with OutputFile(path) as file:
        file.write(_header([piece.tensor for piece in ordered]))
        for piece in ordered:
            _copy(piece, file)
        file.sync()


def shards_of(tensors: Iterable[SpooledTensor], limit: int) -> list[list[SpooledTensor]]:
    """Divide tensors into shards, as `SafetensorsWriter` does: none exceeds the limit but by a single tensor."""
    shards: list[list[SpooledTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.length > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.length
    return shards


def _header(tensors: Sequence[SpooledTensor]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        described[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.length],
        }
        position += tensor.length
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copy(piece: Piece, file: OutputFile) -> None:
    rest = piece.tensor.length
    with piece.spool.open("rb") as source:
        source.seek(piece.tensor.offset)
        while rest and (data := source.read(min(rest, _CHUNK))):
            file.write(data)
            rest -= len(data)
