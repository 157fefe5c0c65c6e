"""A rank that is killed while a model is saved ends the others, and leaves the older checkpoint whole."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from helpers.launcher import run_on_two_ranks

SECONDS = 60  # from the death of one rank to the end of all


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.launcher
def test_the_others_end(tmp_path: Path) -> None:
    run_on_two_ranks("megatron_killed", tmp_path, status=1)

    assert time.time() - float((tmp_path / "died").read_text()) < SECONDS
    before = contents(tmp_path / "before")
    assert "metadata.json" in before
    assert contents(tmp_path / "saved") == before
