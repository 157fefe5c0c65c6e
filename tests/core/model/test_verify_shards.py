"""Shards are read back and compared with what was written: a flipped byte, a lost or strange tensor is named."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.model_folders import flip_byte, some_tensors, write
from octavo.core.errors import CheckpointError
from octavo.core.model.read_back import verify_shards
from octavo.core.model.shard_file import ManifestEntry

SECOND = "model-00002-of-00003.safetensors"


@pytest.fixture
def written(tmp_path: Path) -> dict[str, ManifestEntry]:
    """Five tensors in three shards: two, two, one."""
    return write(tmp_path, some_tensors(), max_shard_bytes=512)


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path)


def test_what_was_written_passes(tmp_path: Path, written: dict[str, ManifestEntry]) -> None:
    verify_shards(tmp_path, written)
    assert sorted({entry.shard for entry in written.values()})[1] == SECOND


@pytest.mark.parametrize("position", [-1, -256, -512])
def test_a_flipped_byte_is_found_and_named(
    tmp_path: Path, written: dict[str, ManifestEntry], position: int
) -> None:
    flip_byte(tmp_path / SECOND, position)
    name = "layers.3.weight" if position == -1 else r"layers.[23].weight"

    message = (
        f"^{SECOND}: tensor '{name}' reads back as ManifestEntry.*sha256='[0-9a-f]{{64}}'.*, written was ManifestEntry"
        ".*; the disk or the memory of this machine cannot be trusted$"
    )
    with pytest.raises(CheckpointError, match=message):
        verify_shards(tmp_path, written)


def test_a_lost_tensor_is_named(tmp_path: Path, written: dict[str, ManifestEntry]) -> None:
    rewrite(tmp_path / SECOND, layers__2__weight=None)

    with pytest.raises(CheckpointError, match=r"^tensors were lost on writing: \['layers.2.weight'\]$"):
        verify_shards(tmp_path, written)


def test_a_strange_tensor_is_named(tmp_path: Path, written: dict[str, ManifestEntry]) -> None:
    rewrite(tmp_path / SECOND, layers__9__weight=torch.ones(2))

    with pytest.raises(CheckpointError, match=r"tensor 'layers.9.weight' reads back as .*, written was None"):
        verify_shards(tmp_path, written)


@pytest.mark.parametrize("change", ["dtype", "shape"])
def test_the_same_bytes_as_another_dtype_or_shape_are_not_the_same(
    tmp_path: Path, written: dict[str, ManifestEntry], change: str
) -> None:
    tensor = load_file(tmp_path / SECOND)["layers.2.weight"].clone()
    other = tensor.view(torch.int32) if change == "dtype" else tensor.reshape(8, 8)
    rewrite(tmp_path / SECOND, layers__2__weight=other)

    values = {"dtype": ("int32", "float32"), "shape": (r"\(8, 8\)", r"\(64,\)")}[change]
    with pytest.raises(
        CheckpointError, match=rf"{change}='?{values[0]}.*written was.*{change}='?{values[1]}"
    ):
        verify_shards(tmp_path, written)


def test_a_tensor_in_another_shard_than_written_is_named(
    tmp_path: Path, written: dict[str, ManifestEntry]
) -> None:
    moved = load_file(tmp_path / SECOND)["layers.2.weight"].clone()
    rewrite(tmp_path / SECOND, layers__2__weight=None)
    rewrite(tmp_path / "model-00001-of-00003.safetensors", layers__2__weight=moved)

    with pytest.raises(
        CheckpointError, match=r"^model-00001.*tensor 'layers.2.weight'.*written was.*model-00002"
    ):
        verify_shards(tmp_path, written)


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_shard_that_cannot_be_read_is_named(
    tmp_path: Path, written: dict[str, ManifestEntry], damage: str
) -> None:
    path = tmp_path / SECOND
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-3])

    with pytest.raises(CheckpointError, match=re.escape(SECOND)):
        verify_shards(tmp_path, written)


def test_every_shard_is_on_the_disk_then(
    tmp_path: Path, written: dict[str, ManifestEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    verify_shards(tmp_path, written)

    assert sorted(flushed) == sorted({entry.shard for entry in written.values()})


def test_a_disk_that_does_not_take_a_shard_is_not_passed_over(
    tmp_path: Path, written: dict[str, ManifestEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fsync)

    with pytest.raises(OSError, match="the disk is broken"):
        verify_shards(tmp_path, written)
