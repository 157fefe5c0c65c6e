"""The report as one HTML page that needs nothing else: totals, plots of error by depth, a row for each weight."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from octavo.core.report.plot import error_plot

# What a row's columns show already, so that it is not listed among the details of its steps.
_IN_COLUMNS = ("algorithm", "weight_sqnr_db", "output_sqnr_db", "fallback")
_NUMBERS = ("block", "weight SQNR, dB", "output SQNR, dB")
_COLUMNS = (
    "weight", "block", "format", "inputs", "algorithms", "weight SQNR, dB", "output SQNR, dB", "chosen", "fallback",
)  # fmt: skip


def report_page(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    rows: Sequence[Mapping[str, Any]] = report["weights"]
    plots = error_plot(rows, "weight_sqnr_db", "weight SQNR, dB") + error_plot(
        rows, "output_sqnr_db", "output SQNR, dB"
    )
    return template.substitute(
        model=escape(str(report["model"])),
        facts=_facts(report),
        plots=plots or "<p>No weight has a depth and an error to plot.</p>",
        notes=_list("Warnings", report["warnings"])
        + _list("Differences for the engine", report["differences"]),
        left_out=_list("Left as they are", report["left_out"]),
        experts=_experts(report["tokens_per_expert"]),
        config=escape(json.dumps(report["config"], indent=1)),
        heads="".join(f'<th{_class(name)}><button type="button">{name}</button></th>' for name in _COLUMNS),
        rows="\n".join(map(_row, rows)),
    )


def _facts(report: Mapping[str, Any]) -> str:
    totals, cost = report["totals"], report["cost"]
    facts = {
        "weights quantized": f"{totals['weights']:,}",
        "of these with a fallback": f"{totals['fallbacks']:,}",
        "layers left as they are": f"{len(report['left_out']):,}",
        "checkpoint": f"{totals['bytes'] / 1e6:,.2f} MB in {totals['tensors']:,} tensors ({report['exporter']})",
        "algorithm": json.dumps(report["config"].get("algorithm")),
    }
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
    return "".join([*lines, *(f"<dt>{name}</dt><dd class=cost>{value}</dd>" for name, value in _costs(cost))])


def _costs(cost: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what differs from run to run, and is marked as such."""
    if "seconds" in cost:
        parts = "".join(f"; {escape(name)} {seconds:,.1f} s" for name, seconds in cost["seconds_of"].items())
        yield "calibration", f"{cost['seconds']:,.1f} s ({cost['cpu_seconds']:,.1f} s of CPU time){parts}"
    for key, name in (("peak_bytes", "peak memory"), ("peak_gpu_bytes", "peak GPU memory")):
        if key in cost:
            yield name, f"{cost[key] / 1e6:,.0f} MB"


def _row(row: Mapping[str, Any]) -> str:
    details = [f"{k}={_shown(v)}" for step in row["steps"] for k, v in step.items() if k not in _IN_COLUMNS]
    cells = (
        row["weight"],
        "" if row["depth"] is None else row["depth"],
        row["format"],
        row["inputs"] or "",
        ", ".join(row["algorithms"]),
        _shown(row["weight_sqnr_db"], ".1f"),
        _shown(row["output_sqnr_db"], ".1f"),
        ", ".join(details),
        row["fallback"] or "",
    )
    tds = (f"<td{_class(name)}>{escape(str(cell))}</td>" for name, cell in zip(_COLUMNS, cells, strict=True))
    return f"<tr{' class=fallback' if row['fallback'] else ''}>{''.join(tds)}</tr>"


def _class(column: str) -> str:
    return " class=number" if column in _NUMBERS else ""


def _shown(value: Any, form: str = ".4g") -> str:
    if value is None:
        return ""
    return format(value, form) if isinstance(value, float) else str(value)


def _experts(tokens: Mapping[str, Sequence[int]]) -> str:
    if not tokens:
        return ""
    names = ("layer", "experts", "fewest tokens", "median", "most tokens", "experts without any")
    rows = (
        (
            name,
            len(counts),
            min(counts),
            f"{median(counts):g}",
            max(counts),
            sum(count == 0 for count in counts),
        )
        for name, counts in tokens.items()
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<h2>Tokens per expert</h2><div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    is_open = " open" if len(items) <= 10 else ""
    return f"<details{is_open}><summary>{title} ({len(items):,})</summary><ul>{lines}</ul></details>"
