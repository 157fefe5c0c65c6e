"""`octavo quantize --stream`: the same bytes, in a process that may be ended at any time."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.cli_runner import DATA, MODEL, Run

TIMED = ("report.json", "report.html", "octavo_stream.json")
COMMAND = ("quantize", MODEL, "--preset", "FP8_DEFAULT_CFG", *DATA)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.name not in TIMED]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_and_a_line_for_each_block(octavo_command: Run, tmp_path: Path) -> None:
    plain = octavo_command(*COMMAND, "--out", tmp_path / "memory", "--json")
    log = tmp_path / "log.jsonl"
    result = octavo_command(*COMMAND, "--out", tmp_path / "stream", "--stream", "--json", "--log-json", log)
    assert (result.code, plain.code) == (0, 0), result.err
    assert hashes(tmp_path / "stream") == hashes(tmp_path / "memory")
    assert result.json["num_tensors"] == plain.json["num_tensors"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["part"] for line in lines] == [*(f"model.layers.{n}" for n in range(5)), ""]
    assert (lines[2]["number"], lines[2]["of"]) == (3, 6)
    assert {"seconds", "mb_per_second", "eta_seconds", "memory_bytes"} < lines[0].keys()
    assert "2/6 model.layers.1: " in result.err
    again = octavo_command(*COMMAND, "--out", tmp_path / "stream", "--stream", "--resume")
    assert (again.code, "is finished; nothing was done" in again.err) == (0, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume",), "--resume goes on with a run of --stream; give both"),
        (("--stream", "--skip-bad-batches"), "--stream does not know --skip-bad-batches yet"),
        (("--stream", "--dialect", "tensorrt_llm"), "--stream does not know --dialect tensorrt_llm yet"),
        (
            ("--stream", "--activation-budget", "much"),
            r"activation_budget (--activation-budget) 'much': expected",
        ),
    ],
)
def test_options_that_do_not_go_together(
    octavo_command: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = octavo_command(*COMMAND, "--out", tmp_path / "out", *options)
    assert result.code == 3
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_is_resumed(
    octavo_command: Run, tmp_path: Path, number: signal.Signals
) -> None:
    out, journal = tmp_path / "out", tmp_path / "out.partial" / "journal.jsonl"
    command = [sys.executable, "-m", "octavo", *map(str, COMMAND), "--out", str(out), "--stream"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        begun = time.monotonic()
        while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
            assert process.poll() is None
            assert time.monotonic() - begun < 300
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert b"ended by SIGTERM. Finished blocks are kept in" in errors
    assert not out.exists()
    result = octavo_command(*COMMAND, "--out", out, "--stream", "--resume")
    assert result.code == 0, result.err
    assert octavo_command(*COMMAND, "--out", tmp_path / "whole", "--stream").code == 0
    assert hashes(out) == hashes(tmp_path / "whole")
