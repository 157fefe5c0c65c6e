"""Where a checkpoint has a manifest, a reader holds the checkpoint to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.model_folders import some_tensors, write
from octavo.core.errors import CheckpointError
from octavo.core.model.shard_reader import MANIFEST_NAME, ShardReader


def replace_in_header(path: Path, old: bytes, new: bytes) -> None:
    """Damage the header so that it stays valid: nothing but the manifest can tell."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {**some_tensors(2), "scale": torch.ones(4, dtype=torch.float64), "norm": torch.ones(8, 2)}
    write(tmp_path, tensors, manifest=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("scale", b'"F64"', b'"I64"'), ("norm", b'"shape":[8,2]', b'"shape":[2,8]')],
    ids=["dtype", "shape"],
)
def test_the_same_bytes_as_another_dtype_or_shape_are_refused(
    folder: Path, name: str, old: bytes, new: bytes
) -> None:
    replace_in_header(folder / "model.safetensors", old, new)

    with pytest.raises(CheckpointError, match=f"model.safetensors.*'{name}'"):
        ShardReader(folder).tensor(name)


def test_a_tensor_that_was_lost_is_named(folder: Path) -> None:
    replace_in_header(folder / "model.safetensors", b"layers.1.weight", b"layers.1.weighu")

    with pytest.raises(CheckpointError, match=r"'?layers.1.weight\b"):
        ShardReader(folder)


@pytest.mark.parametrize(
    "content", [b"{}", b'{"tensors": {"a": {}}}', b'{"version": 2, "tensors": {}}', b"\xff\xfe"], ids=str
)
def test_a_damaged_manifest_is_refused_by_its_path(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)

    with pytest.raises(CheckpointError, match=MANIFEST_NAME):
        ShardReader(folder)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_manifest_that_is_no_json_object_is_refused_by_its_path(folder: Path, content: str) -> None:
    (folder / MANIFEST_NAME).write_text(content)

    with pytest.raises(
        CheckpointError, match=rf"^{folder / MANIFEST_NAME} (cannot be read as JSON|must hold)"
    ):
        ShardReader(folder)
