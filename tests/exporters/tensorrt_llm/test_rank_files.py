"""Files of ranks are what safetensors' own writer makes of the same tensors, whatever the order they came in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.trtllm_checkpoints import same
from octavo.core.errors import ExportError
from octavo.core.model.shard_reader import read_manifest
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.rank_files import RankFiles

DTYPES = (
    torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.int32, torch.float32,
    torch.int64,
)  # fmt: skip


def tensors() -> dict[str, Tensor]:
    values = torch.arange(6).reshape(2, 3)
    made = {f"z.{dtype}": values.to(dtype) for dtype in DTYPES}
    return {**made, **{f"a.{dtype}": values[0, 1].to(dtype) for dtype in DTYPES}, "é": values.t().float()}


def test_the_bytes_are_those_of_safetensors_own_writer(tmp_path: Path) -> None:
    files = RankFiles(tmp_path, Layout(1, 1))
    for name, tensor in tensors().items():
        files.add(0, name, tensor)
    files.finish()
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors().items()}, tmp_path / "expected"
    )

    assert (tmp_path / "rank0.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_each_rank_has_its_own_file_and_manifest(tmp_path: Path) -> None:
    files = RankFiles(tmp_path, Layout(2, 2))
    for rank in (3, 1, 0):
        files.add(rank, "x", torch.full((3,), float(rank)))
    manifests = files.finish()

    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(4)]
    assert [list(rank) for rank in ranks] == [["x"], ["x"], [], ["x"]]
    assert same(ranks[3]["x"], torch.full((3,), 3.0))
    assert read_manifest(tmp_path, "octavo_manifest.rank3.json") == manifests[3]
    assert manifests[3]["x"].shard == "rank3.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == []


def test_a_tensor_that_is_larger_than_the_pieces_it_is_copied_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.exporters.tensorrt_llm.rank_files._CHUNK_BYTES", 7)
    files = RankFiles(tmp_path, Layout(1, 1))
    files.add(0, "x", torch.arange(10.0))
    files.finish()

    assert same(load_file(tmp_path / "rank0.safetensors")["x"], torch.arange(10.0))


def test_a_tensor_is_written_once(tmp_path: Path) -> None:
    files = RankFiles(tmp_path, Layout(2, 1))
    files.add(0, "x", torch.zeros(1))
    files.add(1, "x", torch.zeros(1))
    with pytest.raises(ExportError, match="tensor 'x' of rank 1 would be written twice"):
        files.add(1, "x", torch.zeros(1))


def test_a_dtype_that_files_do_not_hold(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"tensor 'x' has dtype torch\.complex64; files of ranks hold torch\.int64"
    ):
        RankFiles(tmp_path, Layout(1, 1)).add(0, "x", torch.zeros(1, dtype=torch.complex64))
