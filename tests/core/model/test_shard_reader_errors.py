"""Checkpoints that are missing, or damaged are refused by file and tensor."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.model_folders import flip_byte, some_tensors, write
from octavo.core.errors import CheckpointError
from octavo.core.model.shard_reader import ShardReader

SECOND = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path, some_tensors(), 512, manifest=True)
    return tmp_path


def refused(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        action()


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    where = re.escape(str(tmp_path))
    refused(
        lambda: ShardReader(tmp_path), f"^{where} holds neither model.safetensors nor {re.escape(INDEX)}$"
    )
    refused(lambda: ShardReader(tmp_path / "nowhere"), "nowhere holds neither model.safetensors nor")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "with a damaged header": lambda path: flip_byte(path, 8),
    "of another kind": lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 100),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_cannot_be_read_is_named(sharded: Path, damage: str) -> None:
    DAMAGES[damage](sharded / SECOND)

    where = re.escape(str(sharded / SECOND))
    refused(
        lambda: ShardReader(sharded),
        rf"^{where} cannot be read \(.+\); the file is missing, cut short or damaged$",
    )


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_a_single_file_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, some_tensors())
    DAMAGES[damage](tmp_path / "model.safetensors")

    refused(lambda: ShardReader(tmp_path), r"/model.safetensors cannot be read \(")


def test_a_flipped_byte_is_found_by_file_tensor_and_hashes(sharded: Path) -> None:
    flip_byte(sharded / SECOND)
    reader = ShardReader(sharded)

    message = (
        rf"^{re.escape(str(sharded / SECOND))}: tensor 'layers.3.weight' is damaged: its SHA-256 is [0-9a-f]{{64}}, "
        "written was [0-9a-f]{64}. Copy or export the checkpoint again$"
    )
    refused(lambda: reader.tensor("layers.3.weight"), message)
    assert reader.tensor("layers.2.weight").shape == (64,), "the others are whole"


def test_a_name_that_is_not_there_is_refused_with_the_nearest(sharded: Path) -> None:
    reader = ShardReader(sharded)
    message = (
        rf"^{re.escape(str(sharded))} has no tensor 'layers.1.wieght'. Did you mean 'layers.1.weight'\?$"
    )

    refused(lambda: reader.tensor("layers.1.wieght"), message)
    refused(lambda: reader.shape("layers.1.wieght"), message)
