"""The peers' rows of accuracy.py: run in their own environments, or read from the table of an earlier run."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = {  # name in the tables of the harness: its script
    "modelopt": "run_modelopt.py",
    "llm-compressor": "run_llmcompressor.py",
    "auto-round": "run_autoround.py",
    "hqq": "run_hqq.py",
    "torchao": "run_torchao.py",
}
_CELLS = re.compile(r"\s*\|\s*")


@dataclass(frozen=True)
class Row:
    """One line of the table: a tool's result for one format of one model, a value for each calibration seed."""

    model: str
    format: str
    tool: str
    recipe: str
    part: str
    ppl: Sequence[float]
    kl: Sequence[float]
    agree: Sequence[float]
    cpu_s: Sequence[float]
    source: str
    note: str = ""

    def json(self) -> dict[str, Any]:
        """Return the row, JSON-ready."""
        return {**vars(self)}


def baseline(path: Path, model: str) -> dict[str, Row]:
    """Return the best row of each format of `model` from the section "best per format" of a baseline file."""
    text = path.read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(model)}: best per format\n(.*?)^###", text, re.S | re.M)
    if section is None:
        sys.exit(f"{path} has no section '### {model}: best per format'")
    rows = {}
    for line in section[1].splitlines():
        cells = _CELLS.split(line.strip().strip("|").strip())
        if len(cells) > 4 and cells[0] not in ("format", "---") and not cells[0].startswith("-"):
            tool, _, recipe = cells[1].partition(" ")
            ppl, kl, cpu = (_number(cell) for cell in cells[2:5])
            nothing: list[float] = []
            rows[cells[0]] = Row(
                model, cells[0], tool, recipe, "test", [ppl], [kl], nothing, [cpu], "baseline file"
            )
    return rows


def _number(cell: str) -> float:
    return float(cell.replace("*", "").split()[0])


def run_peer(
    tool: str, python: str, harness: Path, model: Path, texts: Path, globs: str, seeds: str, scratch: Path
) -> Iterator[Row]:
    """Run a peer's rows on the test text, one process with one thread, and yield them."""
    out = scratch.resolve() / f"{tool}-{model.name}.jsonl"
    harness, model, texts = harness.resolve(), model.resolve(), texts.resolve()
    command = [python, str(harness / TOOLS[tool]), str(model), "--train", str(texts / "train_sample.txt")]
    command += ["--val", str(texts / "val.jsonl"), "--out", str(out), "--rows", globs, "--seeds", seeds]
    alone = {**os.environ, "PYTHONPATH": str(harness.resolve())}  # its modules, and none of ours
    done = subprocess.run(command, cwd=scratch, env=alone, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{tool} failed:\n{done.stderr[-2000:]}")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in out.read_text(encoding="utf-8").splitlines() if out.exists() else []:
        record = json.loads(line)
        found.setdefault((record["format"], record["algo"]), []).append(record)
    for (format_name, recipe), records in found.items():
        good = [record for record in records if "error" not in record]
        measured = [record.get("own") or record["ref"] for record in good]
        values = {key: [m[key] for m in measured] for key in ("ppl", "kl", "agree")}
        note = "" if good else records[0]["error"]
        cpu = [record["cpu_s"] for record in good]
        yield Row(
            model.name, format_name, tool, recipe, "test", cpu_s=cpu, source="same run", note=note, **values
        )


def best(rows: Sequence[Row]) -> Row | None:
    """Return the row with the least mean KL."""
    good = [row for row in rows if row.kl]
    return min(good, key=lambda row: statistics.mean(row.kl), default=None)
