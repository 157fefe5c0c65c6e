"""Shards on disk, and ways to damage them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from octavo.core.model.shard_file import ManifestEntry
from octavo.core.model.shard_reader import write_manifest
from octavo.core.model.shards import SafetensorsWriter


def some_tensors(count: int = 5, length: int = 64) -> dict[str, Tensor]:
    """Tensors of 4 · length bytes each, `layers.0.weight` and so on."""
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{n}.weight": torch.randn(length, generator=generator) for n in range(count)}


def write(
    folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int = 5_000_000_000, manifest: bool = False
) -> dict[str, ManifestEntry]:
    folder.mkdir(parents=True, exist_ok=True)
    writer = SafetensorsWriter(folder, max_shard_bytes)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    written = writer.finish()
    if manifest:
        write_manifest(folder, written)
    return written


def flip_byte(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
