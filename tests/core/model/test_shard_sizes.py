"""Sharding: no shard larger than asked for, named by its number, and an index that says where each tensor is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers.calibration_snapshot import same_bits
from helpers.model_folders import some_tensors, write
from helpers.tiny import tiny_llama

INDEX = "model.safetensors.index.json"


def index_of(folder: Path) -> dict[str, dict[str, str]]:
    data: dict[str, dict[str, str]] = json.loads((folder / INDEX).read_text())
    return data


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12), limit=st.integers(1, 120))
def test_every_tensor_is_in_the_shard_that_the_index_names(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{number}": torch.full((length,), float(number)) for number, length in enumerate(lengths)}
    manifest = write(folder, tensors, max_shard_bytes=limit)

    shards = sorted(folder.glob("*.safetensors"))
    weight_map = {name: entry.shard for name, entry in manifest.items()}
    if len(shards) > 1:
        assert [s.name for s in shards] == [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
        ]
        assert index_of(folder)["weight_map"] == weight_map
    for shard in shards:
        found = load_file(shard)
        assert found.keys() == {name for name, home in weight_map.items() if home == shard.name}
        assert all(same_bits(tensor, tensors[name]) for name, tensor in found.items())
        occupied = [tensor.nbytes for tensor in found.values() if tensor.nbytes]
        assert sum(occupied) <= limit or len(occupied) == 1
    assert weight_map.keys() == tensors.keys()
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json"}, "no parts are left"


@pytest.mark.parametrize(("limit", "num_shards"), [(512, 1), (511, 2), (256, 2), (255, 2)])
def test_a_shard_may_be_as_large_as_the_limit_and_no_byte_larger(
    tmp_path: Path, limit: int, num_shards: int
) -> None:
    write(tmp_path, some_tensors(count=2, length=64), max_shard_bytes=limit)

    assert len(list(tmp_path.glob("*.safetensors"))) == num_shards


def test_a_tensor_over_the_limit_has_a_shard_of_its_own(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(4), "large": torch.ones(1000), "b": torch.ones(4), "c": torch.ones(4)}

    manifest = write(tmp_path, tensors, max_shard_bytes=64)

    assert {name: entry.shard[6:11] for name, entry in manifest.items()} == {
        "a": "00001", "large": "00002", "b": "00003", "c": "00003",
    }  # fmt: skip


def test_the_total_size_is_that_of_the_tensors_as_transformers_counts_it(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")  # type: ignore[operator]
    write(tmp_path / "ours", dict(model.state_dict()), max_shard_bytes=100_000)

    theirs, ours = (index_of(tmp_path / name)["metadata"]["total_size"] for name in ("theirs", "ours"))

    assert theirs == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert ours == theirs
