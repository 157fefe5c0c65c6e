"""Real processes: both ways in, the same bytes twice, exit codes and streams as a shell sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers.cli_runner import DATA, MODEL
from helpers.exporters_models import digests

SCRIPT = Path(sys.executable).with_name("octavo")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
QUANTIZE = ("quantize", str(MODEL), "--preset", "NVFP4_DEFAULT_CFG", "--kv", "FP8_KV_CFG", *DATA, "--json")
WAYS_IN = {"script": (str(SCRIPT),), "module": (sys.executable, "-m", "octavo")}


def start(*command: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_same_command_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """In two processes with different hash seeds, by both ways in."""
    running = []
    for number, way_in in enumerate(WAYS_IN.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        running.append(start(*way_in, *QUANTIZE, "--out", "out", folder=folder))
    results = [(process.communicate(), process.returncode) for process in running]

    assert [code for _, code in results] == [0, 0], results
    first, second = (json.loads(out) for (out, _), _ in results)
    assert (
        first
        == second
        == {
            "directory": "out",
            "num_tensors": 162,
            "num_bytes": first["num_bytes"],
            "warnings": [],
            "exporter": "unified_hf",
            "differences": [],
        }
    )
    assert digests(tmp_path / "0") == digests(tmp_path / "1")
    assert "out/model.safetensors" in digests(tmp_path / "0")


def test_listings_need_no_framework(tmp_path: Path) -> None:
    """A package of that name that cannot be imported stands for transformers not being there."""
    (tmp_path / "transformers.py").write_text("raise ImportError('not installed')\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}

    done = subprocess.run(
        [str(SCRIPT), "presets", "--json"], env=environment, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)) > 30


def test_errors_are_one_line_on_stderr_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SCRIPT), "inspect", "gone"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (5, "")
    assert (
        done.stderr == "octavo: error: gone is no quantized checkpoint of a known format; "
        "known: awq, compressed_tensors, gptq, tensorrt_llm, unified_hf\n"
    )
