"""The example of training a quantized convolutional network, shortened."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "cnn_qat.py"
BENCHMARK = ROOT / "benchmarks" / "cnn_qat.py"


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


def chance(lost: int, gained: int) -> float:
    """Return how likely so uneven a split is, by listing every way in which coins could fall."""
    total, uneven = lost + gained, abs(lost - gained)
    falls = [abs(2 * sum(coins) - total) >= uneven for coins in product((0, 1), repeat=total)]
    return float(Fraction(sum(falls), len(falls)))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 4), (9, 2), (1, 10)])
def test_the_benchmark_counts_what_differs(lost: int, gained: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    compared = runpy.run_path(str(BENCHMARK))["compared"]
    labels = torch.zeros(40, dtype=torch.long)
    right, wrong = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])
    original = torch.stack([right] * lost + [wrong] * gained + [right] * (40 - lost - gained))
    rounded = torch.stack([wrong] * lost + [right] * gained + [right] * (40 - lost - gained))

    row = compared("int4 QAT", original, rounded, labels)

    assert (row["lost"], row["gained"], row["images"], row["aim"]) == (lost, gained, 40, 1.5)
    assert row["points_below"] == pytest.approx(100 * (row["top1_float"] - row["top1"]))
    assert row["p"] == pytest.approx(chance(lost, gained))
    p, q = right.double().softmax(0), wrong.double().softmax(0)
    expected = float((p * (p / q).log()).sum()) * (lost + gained) / 40
    assert row["kl"] == pytest.approx(expected)
