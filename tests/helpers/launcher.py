"""Scripts of `tests/launched` run by torchrun: two or four processes on this machine, joined by gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
SECONDS = 300
"""Wall-clock limit of a script: far more than it takes on a busy machine."""


def run_on_two_ranks(script: str, folder: Path, *arguments: str, status: int = 0) -> Any:
    """Run `tests/launched/<script>.py` on two ranks and return what rank 0 gave `launched.common.report`."""
    return run_on_ranks(2, script, folder, *arguments, status=status)


def run_on_ranks(ranks: int, script: str, folder: Path, *arguments: str, status: int = 0) -> Any:
    """Run `tests/launched/<script>.py` and return what rank 0 gave `launched.common.report`, or else the output.

    Args:
        ranks: How many processes.
        script: Name of the script.
        folder: An empty folder, the script's to use.
        arguments: Handed to the script, after the folder.
        status: The exit status that torchrun must have.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["--monitor-interval=0.2", str(TESTS / "launched" / f"{script}.py"), str(folder), *arguments]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # on which torchrun ends its processes
        output, _ = process.communicate()
        pytest.fail(f"{script} did not end within {SECONDS} s:\n{_of_ranks(output)}")
    assert process.returncode == status, _of_ranks(output)
    result = folder / "result.json"
    return json.loads(result.read_text()) if result.exists() else output


def _of_ranks(output: str) -> str:
    """Return the end of what the ranks said, which torchrun buries under reports of its own."""
    lines = output.splitlines()
    return "\n".join(([line for line in lines if line.startswith("[rank")] or lines)[-40:])
