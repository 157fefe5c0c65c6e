"""The examples for Megatron-core run by torchrun, as a user types it, on CPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "megatron"
SECONDS = 300
pytestmark = pytest.mark.launcher


def launched(ranks: int, script: str, folder: Path, *arguments: str) -> str:
    """Return what a script prints on that many ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [*command, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_four_ranks_export_the_bytes_that_transformers_gives(tmp_path: Path) -> None:
    arguments = ("--tp", "2", "--pp", "2", "--format", "nvfp4_weights", "--out", str(tmp_path / "out"))

    said = launched(4, "export_hf.py", tmp_path, *arguments)

    assert "117 tensors" in said
    assert "the same bytes as from transformers" in said
    shards = [tmp_path / "out" / name / "model.safetensors" for name in ("megatron", "transformers")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_two_stages_train_with_quantized_weights(tmp_path: Path) -> None:
    said = launched(2, "qat.py", tmp_path, "--pp", "2", "--format", "nvfp4_weights", "--steps", "8")

    before, after = map(float, re.findall(r"nvfp4_weights ([\d.]+), trained ([\d.]+); 117 tensors", said)[0])
    assert 1 < after < before


def test_two_ranks_quantize_and_measure(tmp_path: Path) -> None:
    said = launched(2, "ptq.py", tmp_path, "--tp", "2", "--format", "fp8")

    plain, quantized = map(float, re.findall(r"perplexity ([\d.]+), in fp8 ([\d.]+)", said)[0])
    assert plain == pytest.approx(4.3755, abs=1e-4), "what octavo.perplexity says of transformers' model"
    assert quantized == pytest.approx(plain, rel=0.03)
    assert quantized != plain
