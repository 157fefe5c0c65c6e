"""Views of packed weights as parameters under FSDP2, on two real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.launcher import run_on_two_ranks

NAMES = ["fp8", "int8 per channel", "nvfp4", "fp8 square blocks", "int4, then int8 per channel"]


@pytest.mark.launcher
def test_views_are_sharded_and_gathered(tmp_path: Path) -> None:
    result = run_on_two_ranks("fsdp2_view", tmp_path, *NAMES)

    for name, outcome in result["outcomes"].items():
        assert outcome.pop("rows") == [16, 16], name
        assert all(outcome.values()), f"{name}: {outcome}"
    for message in result["refused"]:
        assert "has some of 31 rows on 2 ranks, and FSDP2 gathers only equal numbers of them" in message
