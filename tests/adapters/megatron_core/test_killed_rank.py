"""A rank that is killed while a model is calibrated or saved ends the others, and leaves older checkpoints whole."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from helpers.launcher import run_on_two_ranks

SECONDS = 60  # from the death of one rank to the end of all


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.launcher
@pytest.mark.parametrize("doing", ["calibrating", "saving"])
def test_the_others_end(tmp_path: Path, doing: str) -> None:
    run_on_two_ranks("megatron_killed", tmp_path, doing, status=1)

    assert time.time() - float((tmp_path / "died").read_text()) < SECONDS
    if doing == "saving":
        before = contents(tmp_path / "before")
        assert "metadata.json" in before
        assert contents(tmp_path / "saved") == before
    else:
        assert not (tmp_path / "saved").exists()
