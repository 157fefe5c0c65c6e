"""What `octavo quantize` refuses before it loads any weights, and what it does not need."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.cli_runner import MODEL, Run

INT8 = ("--preset", "INT8_WEIGHT_ONLY_CFG")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model whose weights cannot be read."""
    shutil.copytree(MODEL, tmp_path / "parent" / "model")
    (tmp_path / "parent" / "model" / "model.safetensors").write_bytes(b"")
    return tmp_path / "parent" / "model"


@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_a_quantized_checkpoint(octavo_command: Run, command: str, checkpoint: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out") if command == "quantize" else ()

    done = octavo_command(command, checkpoint, *INT8, *out)

    assert (done.code, done.out) == (5, "")
    assert f"octavo: error: {checkpoint} is quantized already (unified_hf)" in done.err
    assert "expected the original model" in done.err


@pytest.mark.parametrize("out", ["parent", "parent/model"])
def test_a_folder_that_holds_the_model(octavo_command: Run, model: Path, out: str, tmp_path: Path) -> None:
    done = octavo_command("quantize", model, *INT8, "--out", tmp_path / out, "--overwrite")

    assert done.code == 3
    assert f"--out {tmp_path / out} is MODEL ({model}) or a folder above it" in done.err
    assert (model / "config.json").is_file()


@pytest.mark.parametrize(
    ("preset", "code", "message"),
    [
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 3, "last dim 64 is not divisible by the block of 128"),
        ("FP8_DEFAULT_CFG", 4, "35 quantizers need calibration data and no --calib-data was given"),
    ],
)
def test_what_the_plan_says(
    octavo_command: Run, model: Path, preset: str, code: int, message: str, tmp_path: Path
) -> None:
    done = octavo_command("quantize", model, "--preset", preset, "--out", tmp_path / "out")

    assert done.code == code
    assert message in done.err


def test_weights_alone_need_no_tokenizer(octavo_command: Run, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))

    done = octavo_command("quantize", tmp_path / "model", *INT8, "--out", tmp_path / "out", "--quiet")

    assert (done.code, done.err) == (0, "")
    assert not list((tmp_path / "out").glob("tokenizer*"))
