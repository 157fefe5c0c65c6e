"""The command line, run in this process by its own `main`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "data" / "stories260k"
CALIBRATION = ROOT / "examples" / "data" / "calibration.jsonl"
TEST_TEXT = ROOT / "examples" / "data" / "test.jsonl"
# Little data: what these tests look at does not depend on how much there is.
DATA = ("--calib-data", str(CALIBRATION), "--calib-size", "4", "--seq-len", "32")
TEXT = ("--text", str(TEST_TEXT), "--num-samples", "2", "--seq-len", "32")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout; NaN and Infinity are none."""
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


Run = Callable[..., Result]


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs `octavo` with these arguments."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["octavo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    return run
