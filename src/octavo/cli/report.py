"""`octavo report`: the worst layers of a checkpoint, and what would spare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli import options, output
from octavo.core.report.files import PAGE_FILE, read_report
from octavo.core.report.worst import sparing_entries, worst_weights


def report(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that Octavo wrote.", show_default=False)],
    worst: Annotated[int, typer.Option(min=1, help="How many weights to show.")] = 10,
    as_json: options.AsJson = False,
) -> None:
    """Show the weights that lost most, and the config entries that would leave them as they are."""
    found = read_report(directory)
    rows = worst_weights(found, worst)
    entries = sparing_entries(rows)
    if as_json:
        output.print_json({"worst": rows, "entries": entries})
        return
    if not rows:
        output.print_text(f"{directory}: no weight lost anything, or none is quantized")
        return
    columns = ("weight", "format", "algorithms", "weight SQNR dB", "output SQNR dB", "fallback")
    output.print_table(str(directory), columns, [_cells(row) for row in rows])
    output.print_text("Entries of quant_cfg that leave them as they are (put them last):")
    for entry in entries:
        output.print_text(f"  {entry}")
    output.print_text(f"The whole report: {directory / PAGE_FILE}")


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    numbers = (row["weight_sqnr_db"], row["output_sqnr_db"])
    shown = ["" if number is None else f"{number:.1f}" for number in numbers]
    return (row["weight"], row["format"], ", ".join(row["algorithms"]), *shown, row["fallback"] or "")
