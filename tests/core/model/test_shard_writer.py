"""SafetensorsWriter: shards that Hugging Face reads, each tensor once and as it is."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.calibration_snapshot import same_bits
from helpers.model_folders import contents, some_tensors, write
from helpers.tiny import tiny_llama
from octavo.core.errors import ExportError
from octavo.core.model.shards import SafetensorsWriter


def test_what_fits_is_one_file_without_an_index(tmp_path: Path) -> None:
    tensors = some_tensors()
    manifest = write(tmp_path, tensors)

    assert list(contents(tmp_path)) == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys() == manifest.keys()
    assert all(same_bits(found[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}, "transformers refuses files without it"


def test_transformers_reads_the_shards(tmp_path: Path) -> None:
    model = tiny_llama()
    model.config.save_pretrained(tmp_path)  # type: ignore[union-attr, operator]
    write(tmp_path, dict(model.state_dict()), max_shard_bytes=100_000)

    read = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]

    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert all(same_bits(read.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("limit", [10_000, 1], ids=["pending", "written already"])
def test_a_name_that_comes_twice_is_refused(tmp_path: Path, limit: int) -> None:
    writer = SafetensorsWriter(tmp_path, limit)
    writer.add("a.weight", torch.ones(4))
    writer.add("b.weight", torch.ones(4))

    with pytest.raises(ExportError, match=r"^tensor 'a.weight' would be written twice$"):
        writer.add("a.weight", torch.zeros(2))


def test_without_tensors_the_file_is_empty_and_whole(tmp_path: Path) -> None:
    assert write(tmp_path, {}) == {}

    assert list(contents(tmp_path)) == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors") == {}


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int64, torch.bool],
    ids=str,
)
def test_every_dtype_shape_and_layout_is_written_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.arange(24).reshape(4, 6)
    tensors = {
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3).to(dtype),
        "transposed": base.to(dtype).t(),
        "strided": base.to(dtype)[::2, 1::2],
    }

    manifest = write(tmp_path, tensors)

    found = load_file(tmp_path / "model.safetensors")
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    assert {(entry.dtype, entry.shape) for entry in manifest.values()} == {
        (str(dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in tensors.values()
    }


def test_tensors_are_let_go_when_their_shard_is_written(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, max_shard_bytes=100)
    held = []
    for number in range(5):
        memory = np.ones(25, dtype=np.float32)
        held.append(weakref.ref(memory))
        writer.add(f"t{number}", torch.from_numpy(memory))
        del memory

    assert [reference() is not None for reference in held] == [False] * 4 + [True]
    writer.finish()
    assert held[-1]() is None
