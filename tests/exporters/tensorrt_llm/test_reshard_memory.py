"""Resharding keeps no tensor that it has written: its memory is that of one tensor and its parts."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import octavo
from helpers.trtllm_checkpoints import config_of, tensors_of, write_one_rank
from octavo.exporters.tensorrt_llm.rank_reader import RankReader


def test_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("mixtral", "FP8")
    tensors = tensors_of(config)
    source = write_one_rank(tmp_path / "one", config, tensors)
    octavo.reshard_tensorrt_llm(source, tmp_path / "two", 2, 2)
    read, alive = RankReader.tensor, []
    most = 0

    def watched(self: Any, name: str) -> Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.append(weakref.ref(tensor.untyped_storage()))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    monkeypatch.setattr(RankReader, "tensor", watched)
    octavo.reshard_tensorrt_llm(tmp_path / "two", tmp_path / "four", 4, 1)

    assert len(alive) == len(tensors)
    assert most == 1  # the one that was just read
