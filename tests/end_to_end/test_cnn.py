"""Convolutional networks in INT8: at most one point below the float network, on images that chose nothing."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cnn.py"


def test_accuracy_on_test_images(shared: Path) -> None:
    command = [sys.executable, str(EXAMPLE), str(shared / "data"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resnet, mnist = json.loads(done.stdout)

    assert (resnet["network"], resnet["layers"], resnet["images"]) == ("resnet20", 20, 846)
    assert (mnist["network"], mnist["layers"], mnist["images"]) == ("mnist", 5, 3000)
    assert resnet["top1"] == pytest.approx(0.9173, abs=5e-5)
    for result in (resnet, mnist):
        assert result["top1_int8"] >= result["top1"] - 0.01
        change = (result["gained"] - result["lost"]) / result["images"]
        assert result["top1_int8"] - result["top1"] == pytest.approx(change)
        assert result["lost"] + result["gained"] > 0, "rounding moves some image across a border"
        assert min(result["divergence"], key=result["divergence"].__getitem__) == result["chosen"]


def test_data_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path)])

    with pytest.raises(SystemExit, match=r"model\.safetensors is not there") as refused:
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    assert str(refused.value).startswith(str(tmp_path / "cifar10-resnet20"))
