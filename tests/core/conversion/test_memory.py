"""A checkpoint of many blocks is converted with few of them in memory."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.conversions import HELD_BY_BOTH, different, exported
from helpers.exporters_models import quantized
from octavo.core.conversion import row_parts
from octavo.core.model.shards import SafetensorsWriter
from octavo.exporters.tensorrt_llm.rank_files import RankFiles

NUM_BLOCKS = 5


def live_bytes() -> int:
    """Return the bytes of all tensors that something still holds, shared memory once."""
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_two_blocks_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_hidden_layers": NUM_BLOCKS, "hidden_size": 256, "intermediate_size": 512}
    model = quantized("FP8_DEFAULT_CFG", torch.bfloat16, **sizes)
    block = sum(
        p.numel() for p in model.get_submodule("model.layers.0").parameters()
    )  # a byte for each weight
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "unified", quiet=True)
    del model
    gc.collect()
    before, seen, calls = live_bytes(), list[int](), list[str]()
    add = SafetensorsWriter.add

    def measured(writer: SafetensorsWriter, name: str, tensor: Tensor) -> None:
        add(writer, name, tensor)
        calls.append(name)
        if len(calls) % 11 == 0:  # looking takes long; a block has 23 tensors: every kind has its turn
            seen.append(live_bytes() - before)

    monkeypatch.setattr(SafetensorsWriter, "add", measured)
    report = octavo.convert_checkpoint(
        tmp_path / "unified",
        tmp_path / "ct",
        dialect="compressed_tensors",
        lossy=True,
        quiet=True,
        max_shard_bytes=block,
    )

    assert report.num_bytes > NUM_BLOCKS * block
    assert len(seen) > NUM_BLOCKS
    assert max(seen) <= 2 * block


def test_ranks_are_written_with_less_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_hidden_layers": NUM_BLOCKS, "hidden_size": 256, "intermediate_size": 512}
    model = quantized("INT8_WEIGHT_ONLY_CFG", torch.bfloat16, **sizes)
    block = sum(p.numel() for p in model.get_submodule("model.layers.0").parameters())
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "unified", quiet=True)
    del model
    gc.collect()
    before, seen, calls = live_bytes(), list[int](), list[str]()
    add = RankFiles.add

    def measured(files: RankFiles, rank: int, name: str, tensor: Tensor) -> None:
        add(files, rank, name, tensor)
        calls.append(name)
        if len(calls) % 7 == 0:
            seen.append(live_bytes() - before)

    monkeypatch.setattr(RankFiles, "add", measured)
    report = octavo.convert_checkpoint(
        tmp_path / "unified", tmp_path / "out", "tensorrt_llm", tp=2, quiet=True
    )

    assert report.num_bytes > NUM_BLOCKS * block
    assert len(seen) > NUM_BLOCKS
    assert max(seen) <= block


@pytest.mark.parametrize("case", ["INT8", "W4A16", "FP8"])
def test_parts_of_rows_make_the_whole(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = exported({**HELD_BY_BOTH, "FP8": "FP8_DEFAULT_CFG"}[case], tmp_path / "unified", torch.bfloat16)
    reports = []
    for most_codes in (2**20, 2**10):
        monkeypatch.setattr(row_parts, "_MOST_CODES", most_codes)
        out = tmp_path / str(most_codes)
        report = octavo.convert_checkpoint(source, out, dialect="compressed_tensors", lossy=True, quiet=True)
        reports.append((report.changes, report.share_of_codes))

    assert different(tmp_path / str(2**20), tmp_path / str(2**10)) == []
    assert reports[0] == reports[1]
    assert len(reports[0][0]) >= 13
