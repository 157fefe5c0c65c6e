"""How results are printed: JSON on stdout, or tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.core.model.export_report import ExportReport


def print_json(data: Any) -> None:
    """Print one JSON document on stdout; NaN and infinity, which JSON does not have, as null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    """Print lines on stdout."""
    sys.stdout.write(text + "\n")


def print_export(report: ExportReport, as_json: bool, quiet: bool) -> None:
    """Print what was written: as JSON, as a line, or not."""
    if as_json:
        print_json(
            {
                "directory": str(report.directory),
                "num_tensors": report.num_tensors,
                "num_bytes": report.num_bytes,
                "warnings": list(report.warnings),
                "exporter": report.exporter,
                "differences": list(report.differences),
            }
        )
    elif not quiet:
        print_text(f"{report.directory}: {report.num_tensors} tensors, {report.num_bytes / 1e6:,.2f} MB")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout; no cell is cut or wrapped, so that lines can be searched."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a plain str may hold brackets, which rich would take for styles

    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, min_width=len(title))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    shown = [[_shown(cell) for cell in row] for row in rows]
    for row in shown:
        table.add_row(*map(Text, row))
    needed = sum(max(map(len, column)) + 4 for column in zip(columns, *shown, strict=True))
    console = Console()
    console.width = max(console.width, needed, len(title))
    console.print(table)


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.6g}"
    if isinstance(cell, dict):
        return ", ".join(f"{key}: {value}" for key, value in cell.items())
    return ", ".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data
