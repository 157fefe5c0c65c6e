"""Sources that are damaged, and disks that fail: the message names file and tensor, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.streaming import CrashingDisk, hashes, small_source, stream
from octavo.core.errors import CheckpointError, ConfigError, ExportError
from octavo.core.streaming import files
from octavo.core.streaming.output import GrowingOutput

INDEX = "model.safetensors.index.json"
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_source(tmp_path_factory.mktemp("bad") / "source")


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "source"))


def shard_of(source: Path, name: str) -> Path:
    return source / json.loads((source / INDEX).read_text())["weight_map"][name]


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def in_index(source: Path, change: Callable[[dict[str, str]], Any]) -> None:
    index = json.loads((source / INDEX).read_text())
    change(index["weight_map"])
    (source / INDEX).write_text(json.dumps(index))


def in_header(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def refused(source: Path, match: str) -> None:
    out = source.with_name("out")
    with pytest.raises(CheckpointError, match=match):
        stream(source, out)
    assert not out.exists()
    assert not out.with_name("out.partial").exists(), "refused before any work"


def test_a_shard_that_is_missing(source: Path) -> None:
    shard = shard_of(source, Q)
    shard.unlink()
    refused(
        source, rf"{shard.name}, in which the index has tensor 'model\.[\w.]+', cannot be read: No such file"
    )


def test_a_tensor_that_is_missing_in_its_shard(source: Path) -> None:
    shard = shard_of(source, Q)
    rewrite(shard, lambda tensors: tensors.pop(Q))
    refused(source, rf"{INDEX} has tensor '{Q}' in {shard.name}, and it is in none of the shards")


def test_a_tensor_that_is_missing_everywhere(source: Path) -> None:
    rewrite(shard_of(source, Q), lambda tensors: tensors.pop(Q))
    in_index(source, lambda index: index.pop(Q))
    refused(source, rf"source lacks 1 tensors of the model that .*config.json describes: {Q}")


def test_a_tensor_that_the_index_does_not_name(source: Path) -> None:
    shard = shard_of(source, Q)
    rewrite(shard, lambda tensors: tensors.update(other=torch.ones(3)))
    refused(source, rf"{shard.name} holds tensors that {INDEX} does not name: other")


def test_a_tensor_in_two_shards(source: Path) -> None:
    other = next(path for path in sorted(source.glob("*.safetensors")) if path != shard_of(source, Q))
    rewrite(other, lambda tensors: tensors.update({Q: torch.ones(32, 32)}))
    refused(source, rf"tensor '{Q}' is in two shards, model-0000\d-of-\d+.safetensors and model-0000\d-of")


def test_a_shape_that_the_config_does_not_describe(source: Path) -> None:
    shard = shard_of(source, Q)
    rewrite(shard, lambda tensors: tensors.update({Q: torch.ones(48, 32, dtype=torch.bfloat16)}))
    refused(
        source, rf"{shard.name}: tensor '{Q}' has the shape \[48, 32\]; .*config.json describes .* \[32, 32\]"
    )


def test_a_dtype_that_is_not_known(source: Path) -> None:
    shard = shard_of(source, Q)
    described = f'"{Q}":{{"dtype":"BF16"'.encode()
    in_header(shard, described, described.replace(b"BF16", b"BF99"))
    refused(source, rf"{shard.name}: tensor '{Q}' has the dtype 'BF99', which is not known; known: F64")


def test_codes_in_place_of_a_weight(source: Path) -> None:
    shard = shard_of(source, Q)
    rewrite(shard, lambda tensors: tensors.update({Q: tensors[Q].to(torch.float8_e4m3fn)}))
    refused(source, rf"{shard.name}: tensor '{Q}' is F8_E4M3, expected one of F64, .* quantized already")


def test_a_shard_that_is_cut_short(source: Path) -> None:
    shard = shard_of(source, Q)
    size = shard.stat().st_size
    os.truncate(shard, size - 10)
    refused(
        source,
        rf"{shard.name}: tensor '[\w.]+' ends at byte {size}, and the file has {size - 10}; it is cut short",
    )


def test_a_header_that_is_no_json(source: Path) -> None:
    shard = shard_of(source, Q)
    in_header(shard, b'{"__metadata__"', b'{"__metadata__}')
    refused(source, rf"{shard.name} is no whole safetensors file: its header cannot be read")


def test_no_safetensors(source: Path) -> None:
    for path in (*source.glob("*.safetensors"), source / INDEX):
        path.unlink()
    refused(source, r"source holds neither model.safetensors nor model.safetensors.index.json")


def test_the_source_itself_as_output(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"are one folder, or one is in the other"):
        stream(source, source / "out")


class FullDisk(CrashingDisk):
    """A disk that takes so many bytes and no more; half of what was being written is there."""

    def __init__(self, room: int, error: int = errno.ENOSPC) -> None:
        super().__init__()
        self._room, self._error = room, error

    def write(self, descriptor: int, data: memoryview) -> int:
        self._room -= len(data)
        if self._room < 0:
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(self._error, os.strerror(self._error))
        return super().write(descriptor, data)


@pytest.mark.parametrize(
    ("room", "error", "named"),
    [
        (0, errno.EROFS, r"out.partial/journal.jsonl cannot be written: Read-only file system"),
        (20_000, errno.ENOSPC, r"out.partial/[\w.-]+ cannot be written: No space left on device"),
        (50_000, errno.EIO, r"out.partial/.* cannot be written: Input/output error"),
    ],
)
def test_a_disk_that_fails(
    source: Path, monkeypatch: pytest.MonkeyPatch, room: int, error: int, named: str
) -> None:
    out = source.with_name("out")
    with monkeypatch.context() as patched:
        patched.setattr(files, "disk", FullDisk(room, error))
        with pytest.raises(ExportError, match=named + r".* is kept in .*out.partial; .* \(--resume\)"):
            stream(source, out)
    assert not out.exists()
    stream(source, out, resume=True)
    stream(source, source.with_name("other"))
    assert hashes(out) == hashes(source.with_name("other"))


def test_a_source_that_changes_under_way(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, out = shard_of(source, Q), source.with_name("out")
    done = GrowingOutput.commit

    def commit_and_change(self: GrowingOutput, name: str, *rest: Any) -> None:
        done(self, name, *rest)
        if name == "model.layers.0":
            rewrite(shard, lambda tensors: tensors.update(other=torch.ones(2)))

    monkeypatch.setattr(GrowingOutput, "commit", commit_and_change)
    with pytest.raises(CheckpointError, match=rf"{shard.name} has changed since the run began"):
        stream(source, out)
