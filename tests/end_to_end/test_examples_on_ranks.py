"""The examples that torchrun starts: stopped and run again, they export the bytes of a run that was not stopped."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.launcher import launch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WEIGHTS = "exported/model.safetensors"

pytestmark = pytest.mark.launcher


def rows_of(output: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(next(line for line in output.splitlines() if line.startswith('{"')))
    return found


def check(rows: dict[str, float]) -> None:
    lost = rows["rounded, not trained"] - rows["original"]
    assert rows["trained with rounding"] < rows["rounded, not trained"] - 0.1 * lost
    assert rows["the exported checkpoint"] == pytest.approx(rows["trained with rounding"], rel=1e-6)


def test_fsdp2_qat_stopped_and_resumed(tmp_path: Path) -> None:
    script, flags = EXAMPLES / "fsdp2_qat.py", ["--steps", "9", "--json", "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    check(rows_of(launch(script, *flags, str(whole))))
    stopped = rows_of(launch(script, *flags, str(parts), "--stop-at", "7"))
    assert stopped.keys() == {"original", "rounded, not trained"}
    launch(script, *flags, str(parts), "--stop-at", "7")  # which it has passed

    assert (parts / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero3_qat_resumed(tmp_path: Path) -> None:
    script, flags = EXAMPLES / "zero3_qat.py", ["--steps", "9", "--save-every", "7", "--json", "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    check(rows_of(launch(script, *flags, str(whole))))
    shutil.copytree(whole / "checkpoints" / "checkpoint-7", parts / "checkpoints" / "checkpoint-7")
    launch(script, *flags, str(parts))

    assert (parts / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
