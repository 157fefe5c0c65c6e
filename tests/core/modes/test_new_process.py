"""A model saved by one process is restored by another, bit for bit, without the data it was calibrated with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

import octavo
from helpers.calibration_snapshot import same_bits
from helpers.modes_saved import logits, quantized

RESTORE = """
import sys
sys.path.insert(0, sys.argv[1])
import octavo
from helpers.modes_saved import logits, plain
from safetensors.torch import save_file

model = octavo.restore(plain(), sys.argv[2])
save_file({"logits": logits(model)}, sys.argv[3])
print(*(record.mode for record in octavo.history(model)))
"""


def test_a_new_process_computes_the_same_logits(tmp_path: Path) -> None:
    model = quantized()
    octavo.save(model, tmp_path / "saved")
    tests, output = Path(__file__).parents[2], tmp_path / "logits.safetensors"

    done = subprocess.run(
        [sys.executable, "-c", RESTORE, str(tests), str(tmp_path / "saved"), str(output)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["quantize"]
    assert same_bits(load_file(output)["logits"], logits(model))
