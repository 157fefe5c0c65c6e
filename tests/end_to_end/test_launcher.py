"""The launcher of these tests: a rank that dies ends the run soon, and its reason is shown."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from helpers.launcher import run_on_two_ranks


@pytest.mark.launcher
def test_a_rank_that_dies_ends_the_others(tmp_path: Path) -> None:
    start = time.monotonic()

    output = run_on_two_ranks("dying_rank", tmp_path, status=1)

    assert "rank 1 gave up" in output
    assert time.monotonic() - start < 60
