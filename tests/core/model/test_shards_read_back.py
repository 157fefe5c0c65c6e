"""A writer that reads back: what the disk holds otherwise than memory is found while it is written, and named."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from helpers.calibration_snapshot import same_bits
from helpers.model_folders import flip_byte, some_tensors
from octavo.core.errors import CheckpointError
from octavo.core.model.read_back import verify_shards
from octavo.core.model.shard_file import ManifestEntry
from octavo.core.model.shards import SafetensorsWriter

REAL_SAVE = safetensors.torch.save_file


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, ManifestEntry]:
    """Two tensors in each shard."""
    writer = SafetensorsWriter(folder, max_shard_bytes=512, reads_back=True)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    return writer.finish()


def damaged_by(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path, dict[str, torch.Tensor]], object]
) -> None:
    """Damage the second shard as soon as it is written, as a bad disk would."""

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        REAL_SAVE(tensors, path, metadata)
        if path.name == "shard-2.part":
            damage(path, tensors)

    monkeypatch.setattr(safetensors.torch, "save_file", save)


def test_what_is_written_passes_and_has_the_hashes_of_the_files(tmp_path: Path) -> None:
    nan = torch.full((3,), float("nan"))
    tensors = some_tensors() | {
        "nan": nan,
        "empty": torch.empty(0, 2),
        "odd": torch.arange(7, dtype=torch.uint8),
    }

    manifest = write(tmp_path, tensors)

    assert manifest.keys() == tensors.keys()
    verify_shards(tmp_path, manifest)
    found = safetensors.torch.load_file(tmp_path / manifest["nan"].shard)
    assert same_bits(found["nan"], nan)


@pytest.mark.parametrize("position", [-1, -256, -512])
def test_a_flipped_byte_is_found_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    damaged_by(monkeypatch, lambda path, _: flip_byte(path, position))

    name = "layers.3.weight" if position == -1 else r"layers.[23].weight"
    message = (
        rf"^shard-2.part: tensor '{name}' does not read back as it was written; the disk or the memory of"
    )
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path, some_tensors())


def test_a_flipped_byte_far_in_a_large_tensor_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged_by(monkeypatch, lambda path, _: flip_byte(path, -300_000))

    with pytest.raises(CheckpointError, match=r"tensor 'layers.1.weight' does not read back"):
        write(tmp_path, some_tensors(count=2, length=250_000))


def as_integers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.view(torch.int32) for name, tensor in tensors.items()}


def as_matrices(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.reshape(8, 8) for name, tensor in tensors.items()}


@pytest.mark.parametrize("changed", [as_integers, as_matrices])
def test_the_same_bytes_as_another_dtype_or_shape_are_not_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    damaged_by(monkeypatch, lambda path, tensors: REAL_SAVE(changed(tensors), path))

    with pytest.raises(CheckpointError, match=r"^shard-2.part: tensor 'layers.2.weight' does not read back"):
        write(tmp_path, some_tensors())


def test_lost_and_strange_tensors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        REAL_SAVE({"strange" if name == "layers.2.weight" else name: t for name, t in tensors.items()}, path)

    damaged_by(monkeypatch, rename)

    message = r"^shard-2.part: tensors \['layers.2.weight', 'strange'\] are only in the file or were lost;"
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path, some_tensors())


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged_by(monkeypatch, lambda path, _: path.write_bytes(path.read_bytes()[:-3]))

    with pytest.raises(CheckpointError, match=re.escape("shard-2.part cannot be read")):
        write(tmp_path, some_tensors())


def test_every_shard_is_on_the_disk_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path, some_tensors())

    assert sorted(flushed) == ["shard-1.part", "shard-2.part", "shard-3.part"]


def test_a_disk_that_does_not_take_a_shard_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fsync)

    with pytest.raises(OSError, match="the disk is broken"):
        write(tmp_path, some_tensors())
