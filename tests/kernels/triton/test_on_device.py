"""The kernels against the reference, bit for bit, products against float64: on a CUDA device, or in the interpreter.

The interpreter is chosen when Triton is imported, so the tests of `on_device` run in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton")
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "file",
    [
        "check_formats.py",
        "check_tensors.py",
        "check_products.py",
        "check_expert_products.py",
        "check_code_products.py",
    ],
)
def test_on_device(file: str) -> None:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OCTAVO_AUTOTUNE": "0"}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    # The interpreter computes with numpy, which warns of the infinities that some of these tests are about.
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    path = Path(__file__).parent / "on_device" / file
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"{path} failed in its own process:\n{done.stdout[-8000:]}\n{done.stderr[-2000:]}")
