"""ShardReader: tensors by name from one file or from shards, read when asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from helpers.calibration_snapshot import same_bits
from helpers.model_folders import some_tensors, write
from helpers.tiny import tiny_llama
from octavo.core.model.shard_reader import ShardReader, read_manifest

TENSORS = some_tensors()


@pytest.mark.parametrize("limit", [5_000_000_000, 512, 1])
@pytest.mark.parametrize("manifest", [False, True])
def test_every_tensor_is_read_as_it_was_written(tmp_path: Path, limit: int, manifest: bool) -> None:
    write(tmp_path, dict(reversed(TENSORS.items())), limit, manifest)

    reader = ShardReader(tmp_path)

    assert reader.names() == sorted(TENSORS)
    assert all(same_bits(reader.tensor(name), tensor) for name, tensor in TENSORS.items())
    assert all(reader.shape(name) == tuple(tensor.shape) for name, tensor in TENSORS.items())
    assert "layers.0.weight" in reader
    assert "layers.0.bias" not in reader


def test_where_names_file_and_tensor(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, 512)

    found = ShardReader(tmp_path).where("layers.3.weight")

    assert found == f"{tmp_path}/model-00002-of-00003.safetensors: tensor 'layers.3.weight'"


def test_files_of_other_tools_are_read_without_a_manifest(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path, max_shard_size="100KB")  # type: ignore[operator]

    reader = ShardReader(tmp_path)

    assert reader.names() == sorted(model.state_dict())
    assert all(same_bits(reader.tensor(name), value) for name, value in model.state_dict().items())


def test_shards_may_be_links_as_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "blobs", TENSORS, 512, manifest=True)
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)

    reader = ShardReader(tmp_path / "snapshot")

    assert all(same_bits(reader.tensor(name), tensor) for name, tensor in TENSORS.items())


def test_a_moved_folder_is_read_where_it_is(tmp_path: Path) -> None:
    write(tmp_path / "here", TENSORS, 512, manifest=True)
    shutil.move(tmp_path / "here", tmp_path / "there")

    assert same_bits(ShardReader(tmp_path / "there").tensor("layers.4.weight"), TENSORS["layers.4.weight"])


def test_the_index_counts_where_both_are_there(tmp_path: Path) -> None:
    write(tmp_path, {"stale.weight": torch.ones(1)})
    write(tmp_path, TENSORS, 512)

    assert ShardReader(tmp_path).names() == sorted(TENSORS)


def test_tensors_of_a_shard_that_the_index_does_not_list_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, 512)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"layers.2.weight": "model-00002-of-00003.safetensors"}}')

    assert ShardReader(tmp_path).names() == ["layers.2.weight"]


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {
        **TENSORS,
        "scale": torch.tensor(2.0).to(torch.float8_e4m3fn),
        "ids": torch.arange(6).reshape(2, 3),
    }

    written = write(tmp_path, tensors, 512, manifest=True)

    assert read_manifest(tmp_path) == written
    assert (written["ids"].dtype, written["ids"].shape) == ("int64", (2, 3))
    assert written["scale"].shape == ()


def test_without_a_manifest_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}
