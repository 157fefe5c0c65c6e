"""kill -9 in the middle of writing: nothing under the final name, and the old folder whole."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import octavo
from helpers.calibration_models import two_layers
from helpers.model_folders import contents

# Writes shard after shard into the temporary folder, until somebody ends it.
WRITER = """
import signal
import sys
from pathlib import Path
import torch
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.shards import SafetensorsWriter

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with atomic_folder(Path(sys.argv[1]), overwrite=True) as folder:
    writer = SafetensorsWriter(folder, max_shard_bytes=1000)
    number = 0
    while True:
        number += 1
        writer.add(f"layers.{number}.weight", torch.ones(300))
        if number == 20:
            print("writing", flush=True)
"""


def started(place: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(place)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def ended(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """Send a signal when the process has written its first shards."""
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(how)
    process.wait(timeout=120)
    process.stdout.close()
    assert process.returncode != 0


def test_a_writer_that_is_ended_leaves_what_was_there(tmp_path: Path) -> None:
    killed, interrupted = tmp_path / "killed", tmp_path / "interrupted"
    octavo.save(two_layers(), killed / "old")
    before = contents(killed / "old")
    writers = [started(killed / "old"), started(killed / "new"), started(interrupted / "new")]
    for process, how in zip(writers, (signal.SIGKILL, signal.SIGKILL, signal.SIGINT), strict=True):
        ended(process, how)

    assert contents(killed / "old") == before
    assert not (killed / "new").exists()
    assert list(interrupted.iterdir()) == []
    # Nobody was left to clean up after the killed ones; the names say what they are.
    left = sorted(path.name.partition(".partial-")[0] for path in killed.iterdir())
    assert left == [".new", ".old", "old"]
    octavo.restore(two_layers(), killed / "old")
    octavo.save(two_layers(), killed / "new")
