"""Quantized Megatron-core models saved by one layout of ranks and loaded by another, on real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.launcher import run_on_ranks

OF_TWO = [
    "tp2_tp1",
    "tp1_tp2",
    "tp1_tp2_blocks",
    "pp2_tp2_factors",
    "pp2_tp2",
    "tp2_pp2_some",
    "ep2_tp1",
    "ep2_pp2",
]
OF_FOUR = ["tp2pp2_tp2", "tp2pp2_pp2", "tp2ep2_pp2"]


def check(result: Any, names: list[str], ranks: int) -> None:
    for name in names:
        found = result[name]
        assert found["tensors"] >= 20, name
        assert found["modes"] == ["quantize"], name
        assert found["back"] == [[]] * ranks, f"{name}: a tensor came back with other bytes"
        assert found["as_calibrated_there"] == [[]] * ranks, (
            f"{name}: other scales than calibrating there gives"
        )
        saved, loaded = found["losses"]
        assert loaded == pytest.approx(saved, rel=2e-6), name


@pytest.mark.launcher
def test_two_ranks(tmp_path: Path) -> None:
    check(run_on_ranks(2, "megatron_checkpoints", tmp_path, *OF_TWO), OF_TWO, 2)


@pytest.mark.launcher
def test_four_ranks(tmp_path: Path) -> None:
    check(run_on_ranks(4, "megatron_checkpoints", tmp_path, *OF_FOUR), OF_FOUR, 4)
