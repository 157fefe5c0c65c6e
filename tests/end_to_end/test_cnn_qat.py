"""The example of training a quantized convolutional network, shortened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cnn_qat.py"


def test_it_trains_and_folds_every_normalization(shared: Path) -> None:
    shortened = ["--images", "128", "--epochs", "1", "--formats", "int4", "--json"]
    command = [sys.executable, str(EXAMPLE), str(shared / "data"), *shortened]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rounded, trained = json.loads(done.stdout)

    assert [row["network"] for row in (rounded, trained)] == ["int4 PTQ", "int4 QAT"]
    assert trained["folded"] == 19
    for row in (rounded, trained):
        assert row["images"] == 128
        assert row["top1"] == row["top1_float"] + (row["gained"] - row["lost"]) / row["images"]
        assert row["top1"] > row["top1_float"] - 0.1
