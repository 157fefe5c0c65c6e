"""The report's two files beside a checkpoint: report.json, and report.html to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.report.page import report_page
from octavo.core.report.run_report import VERSION

REPORT_FILE, PAGE_FILE = "report.json", "report.html"


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write both files into `folder`."""
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    (folder / PAGE_FILE).write_text(report_page(report), encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or another version of Octavo wrote it.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {REPORT_FILE}: it is no checkpoint that Octavo wrote")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    found = report.get("version") if isinstance(report, dict) else None
    if found != VERSION:
        raise CheckpointError(
            f"{path} has version {found!r}, and this Octavo reads version {VERSION}; read it with the Octavo that "
            "wrote it"
        )
    return dict(report)
