"""Ctrl-C at any line of quantizing leaves the model as it was, or completely quantized."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from torch import nn

import octavo
from helpers.calibration_models import rows, two_layers
from helpers.calibration_snapshot import snapshot
from octavo.core.calibration.max_scales import uncalibrated


@cache
def clean_up_lines(file: str) -> frozenset[int]:
    """Bodies of `finally`, and `with`, whose line runs again when it ends: Python offers no way to protect these."""
    nodes = list(ast.walk(ast.parse(Path(file).read_text())))
    bodies = [statement for node in nodes if isinstance(node, ast.Try) for statement in node.finalbody]
    spans = [(part.lineno, part.end_lineno or 0) for part in bodies]
    spans += [(node.lineno, node.body[0].lineno - 1) for node in nodes if isinstance(node, ast.With)]
    return frozenset(line for first, last in spans for line in range(first, last + 1))


def interrupted_at(line: int, files: tuple[str, ...], run: Callable[[], Any]) -> tuple[str, int] | None:
    """Run with a KeyboardInterrupt at the n-th line executed in `files`; return where, or None at the end."""
    count, where = 0, None

    def in_file(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count, where
        if event == "line" and frame.f_lineno not in clean_up_lines(frame.f_code.co_filename):
            count += 1
            if count == line:
                where = (frame.f_code.co_name, frame.f_lineno)
                raise KeyboardInterrupt
        return in_file

    def trace(frame: FrameType, _event: str, _: Any) -> Any:
        return in_file if frame.f_code.co_filename.endswith(files) else None

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        assert where is not None
    finally:
        sys.settrace(previous)
    return where


@pytest.mark.parametrize(
    ("files", "at_least"),
    [
        (("calibration/attach.py",), 80),
        (("calibration/quantize.py",), 10),
        (("calibration/max_scales.py",), 40),
        (("modes/transaction.py", "modes/record.py"), 5),
        (("modules/swap.py", "modules/wrappers.py"), 60),
        (("calibration/forward_loop.py", "graph/evaluating.py"), 15),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_interrupt_at_any_line_leaves_nothing_half_done(files: tuple[str, ...], at_least: int) -> None:
    octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", [rows()], quiet=True)  # imports what is imported late
    broken: Counter[tuple[str, int]] = Counter()
    line = 0
    while True:
        line += 1
        model = two_layers()
        before = snapshot(model)
        where = _interrupted_quantize(model, line, files, broken)
        if where is None:
            break
        complete = bool(octavo.history(model)) and not uncalibrated(model)
        if not complete and snapshot(model) != before and where[0]:
            broken[where] += 1

    assert line > at_least
    assert broken == {}


def _interrupted_quantize(
    model: nn.Module, line: int, files: tuple[str, ...], broken: Counter[tuple[str, int]]
) -> tuple[str, int] | None:
    def run() -> None:
        octavo.quantize(model, "FP8_DEFAULT_CFG", [rows()], quiet=True)

    try:
        return interrupted_at(line, files, run)
    except KeyError as error:  # what undo raises when it meets half a swap
        broken[(f"undo failed: {error}", 0)] += 1
        return "", line
