"""vLLM's own loading code takes what is exported and converted for it; `make consumers` builds its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment() -> Path:
    """The folder that `make consumers` makes, or the one that OCTAVO_VLLM names."""
    folder = Path(os.environ.get("OCTAVO_VLLM", ROOT / ".consumers" / "vllm"))
    if not (folder / "V" / "bin" / "python").is_file() or not (folder / "S" / "vllm").is_dir():
        pytest.skip(f"{folder} has no vLLM; `make consumers` builds it, OCTAVO_VLLM names another place")
    return folder


@pytest.mark.shared
@pytest.mark.parametrize(
    ("case", "options"),
    [("tied NVFP4_DEFAULT_CFG", []), ("moe FP8_PER_CHANNEL_PER_TOKEN_CFG", ["--converted"])],
)
def test_vllm_takes_every_tensor(case: str, options: list[str], environment: Path, shared: Path) -> None:
    judge = shared / "tools" / "verify_vllm.py"
    command = [sys.executable, str(ROOT / "benchmarks" / "vllm_loads.py"), "--only", case, *options]
    command += ["--vllm", str(environment / "V" / "bin" / "python"), "--judge", str(judge)]

    done = subprocess.run(
        command,
        env={**os.environ, "VLLM_SRC": str(environment / "S")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("|"))
    assert row.endswith("| loads | loads | 0 |")
