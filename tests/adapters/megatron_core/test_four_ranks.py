"""Quantized Megatron-core models saved by four ranks that share them in two ways, and loaded by others."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.launcher import run_on_ranks
from helpers.megatron_results import check_trips

TRIPS = ["tp2pp2_tp2", "tp2ep2_pp2"]


@pytest.mark.launcher
def test_checkpoints_of_other_layouts(tmp_path: Path) -> None:
    result = run_on_ranks(4, "megatron", tmp_path, "checkpoints")

    check_trips(result["checkpoints"], TRIPS, 4)
