"""Shards put together from spools are those that the safetensors library writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.model.shards import ManifestEntry
from octavo.core.streaming.shard_files import Piece, shards_of, write_shard
from octavo.core.streaming.spool import Spool, SpooledTensor, read_spooled

DTYPES = (
    "uint64", "int64", "float64", "complex64", "float32", "uint32", "int32", "bfloat16", "float16", "uint16", "int16",
    "float8_e8m0fnu", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool",
)  # fmt: skip


def some_tensors() -> dict[str, Tensor]:
    raw = torch.arange(48, dtype=torch.uint8) % 2
    found = {
        f"{name}.{dtype}": raw.clone().view(getattr(torch, dtype)).reshape(2, -1)
        for dtype in reversed(DTYPES)
        for name in ("b", "a", 'ü "quoted"')
    }
    return found | {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "long": torch.zeros(3, 2_000_000),
    }


def test_the_same_bytes_as_the_library(tmp_path: Path) -> None:
    tensors, spool = some_tensors(), Spool(tmp_path / "spool.bin")
    for name, tensor in tensors.items():
        spool.add(name, tensor)
    write_shard(tmp_path / "ours.safetensors", [Piece(tmp_path / "spool.bin", one) for one in spool.finish()])
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert load_file(tmp_path / "ours.safetensors").keys() == tensors.keys()


def test_spools_give_back_what_they_took(tmp_path: Path) -> None:
    tensors, spool = some_tensors(), Spool(tmp_path / "spool.bin")
    entries = [spool.add(name, tensor) for name, tensor in tensors.items()]
    spool.finish()
    for entry, tensor in zip(entries, tensors.values(), strict=True):
        assert SpooledTensor.from_json(entry.to_json()) == entry
        found = read_spooled(tmp_path / "spool.bin", entry)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert ManifestEntry.of(found.contiguous(), "").sha256 == entry.sha256
    (tmp_path / "spool.bin").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"spool.bin: tensor 'scalar' has 0 bytes, written were 4; remove"
    ):
        read_spooled(tmp_path / "spool.bin", next(entry for entry in entries if entry.name == "scalar"))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(100, [[60, 40], [30], [200], [10]]), (1, [[60], [40], [30], [200], [10]]), (999, None)],
)
def test_tensors_are_divided_as_in_memory(limit: int, expected: list[list[int]] | None) -> None:
    lengths = [60, 40, 30, 200, 10]
    entries = [SpooledTensor(str(n), "uint8", (n,), 0, n, "") for n in lengths]
    assert [[one.length for one in shard] for shard in shards_of(entries, limit)] == (expected or [lengths])
    assert shards_of([], limit) == [[]]
