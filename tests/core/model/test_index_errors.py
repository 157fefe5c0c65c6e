"""An index that points outside the folder, to tensors that are not there, or is no index, is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.model_folders import some_tensors, write
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


def edit_index(folder: Path, **weight_map: Any) -> None:
    data = json.loads((folder / INDEX).read_text())
    data["weight_map"].update({name.replace("__", "."): shard for name, shard in weight_map.items()})
    (folder / INDEX).write_text(json.dumps(data))


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "a/../../b.safetensors", "./x"]
)
def test_a_shard_outside_the_folder_is_refused_before_anything_is_opened(sharded: Path, shard: str) -> None:
    outside = sharded.parent / "secret.safetensors"
    outside.write_bytes((sharded / SECOND).read_bytes())
    edit_index(sharded, layers__0__weight=shard)

    message = (
        rf"^{re.escape(str(sharded / INDEX))}: tensor 'layers.0.weight' is said to be in '{re.escape(shard)}', outside "
        "the folder; shard names must be plain file names$"
    )
    refused(lambda: ShardReader(sharded), message)


@pytest.mark.parametrize("shard", ["..", ".", ""])
def test_a_shard_that_is_a_folder_is_refused(sharded: Path, shard: str) -> None:
    edit_index(sharded, layers__0__weight=shard)

    refused(lambda: ShardReader(sharded), "outside the folder|cannot be read")


def test_an_index_that_names_a_tensor_which_its_shard_lacks_is_refused(sharded: Path) -> None:
    edit_index(sharded, layers__7__weight=SECOND, layers__0__weight=SECOND)

    where = re.escape(str(sharded / SECOND))
    refused(
        lambda: ShardReader(sharded),
        f"^{where} lacks tensors of the index: layers.0.weight, layers.7.weight$",
    )


@pytest.mark.parametrize("content", ["", "{", "not json"])
def test_an_index_that_is_not_json_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)

    refused(
        lambda: ShardReader(sharded), rf"^{re.escape(str(sharded / INDEX))} cannot be read as JSON: Expecting"
    )


def test_an_index_that_is_no_object_is_refused(sharded: Path) -> None:
    (sharded / INDEX).write_text("[1]")

    refused(lambda: ShardReader(sharded), "json must hold a JSON object, found list$")


@pytest.mark.parametrize(
    "content",
    [b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 5}}', b'{"weight_map": {"a": null}}', b"\xff\xfe"],
)
def test_an_index_of_another_form_is_refused_by_its_path(sharded: Path, content: bytes) -> None:
    (sharded / INDEX).write_bytes(content)

    refused(lambda: ShardReader(sharded), re.escape(str(sharded / INDEX)))
