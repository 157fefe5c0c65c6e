"""The report as one HTML page that needs nothing else: totals, a plot of error by depth, a row for each weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

_WIDTH, _HEIGHT, _MARGIN = 860, 280, 44
_COLORS = ("#1b6ca8", "#c8553d", "#4f7942", "#8a5aa8", "#b8860b", "#2a9d8f", "#7a7a7a")


def report_page(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    weights: Sequence[Mapping[str, Any]] = report["weights"]
    return template.substitute(
        model=escape(str(report["model"])),
        facts=_facts(report),
        plot=_plot(weights),
        rows="\n".join(map(_row, weights)),
        experts=_experts(report["tokens_per_expert"]),
        warnings=_list("Warnings", report["warnings"]) + _list("Left as they are", report["left_out"]),
    )


def _facts(report: Mapping[str, Any]) -> str:
    totals, run = report["totals"], report["run"]
    fallbacks = sum(1 for row in report["weights"] if row["fallback"])
    facts = {
        "weights quantized": f"{totals['num_weights']:,}",
        "checkpoint": f"{totals['bytes'] / 1e6:,.2f} MB in {totals['num_tensors']:,} tensors ({totals['exporter']})",
        "algorithm": str(report["config"].get("algorithm")),
        "forward passes": str(run.get("forward_passes", "unknown")),
        "seconds": f"{run['seconds']:.1f}" if "seconds" in run else "unknown",
        "peak memory": f"{run['peak_bytes'] / 1e6:,.0f} MB" if "peak_bytes" in run else "unknown",
        "fallbacks": str(fallbacks),
    }
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())


def _plot(weights: Iterable[Mapping[str, Any]]) -> str:
    """Return a scatter plot of the weights' SQNR over their depth, a color for each kind of layer."""
    points = [w for w in weights if w["depth"] is not None and w["weight_sqnr_db"] is not None]
    if not points:
        return "<p>No weight has a depth and an error to plot.</p>"
    kinds = list(dict.fromkeys(_kind(w["weight"]) for w in points))
    low, high = min(w["weight_sqnr_db"] for w in points), max(w["weight_sqnr_db"] for w in points)
    deepest, span = max(max(w["depth"] for w in points), 1), max(high - low, 1e-9)
    marks = []
    for w in points:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * w["depth"] / deepest
        y = _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (w["weight_sqnr_db"] - low) / span
        color = _COLORS[kinds.index(_kind(w["weight"])) % len(_COLORS)]
        title = f"{w['weight']}: {w['weight_sqnr_db']:.1f} dB"
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"><title>{escape(title)}</title></circle>'
        )
    legend = "".join(
        f'<span><i style="background:{_COLORS[i % len(_COLORS)]}"></i>{escape(kind)}</span>'
        for i, kind in enumerate(kinds)
    )
    left, bottom = _MARGIN, _HEIGHT - _MARGIN
    axes = (
        f'<path d="M{left} {_MARGIN / 2} V{bottom} H{_WIDTH - _MARGIN / 2}" fill="none" stroke="#999"/>'
        f'<text x="4" y="{bottom}">{low:.1f} dB</text><text x="4" y="{_MARGIN}">{high:.1f} dB</text>'
        f'<text x="{left}" y="{_HEIGHT - 12}">block 0</text>'
        f'<text x="{_WIDTH - 2 * _MARGIN}" y="{_HEIGHT - 12}">block {deepest}</text>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="weight SQNR by depth">{axes}'
        f'{"".join(marks)}</svg><div class="legend">{legend}</div>'
    )


def _kind(name: str) -> str:
    """Return the part of a weight's name that says what it is: `q_proj`, `down_proj`."""
    parts = [part for part in name.partition("[")[0].removesuffix(".weight").split(".") if not part.isdigit()]
    return parts[-1] if parts else name


def _row(row: Mapping[str, Any]) -> str:
    details = [f"{k}={_shown(v)}" for step in row["steps"] for k, v in step.items() if k not in _IN_COLUMNS]
    cells = (
        row["weight"],
        row["format"],
        row["inputs"] or "",
        ", ".join(row["algorithms"]),
        _decibel(row["weight_sqnr_db"]),
        _decibel(row["output_sqnr_db"]),
        " ".join(details),
        row["fallback"] or "",
    )
    kind = ' class="fallback"' if row["fallback"] else ""
    return f"<tr{kind}>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


_IN_COLUMNS = ("algorithm", "weight_sqnr_db", "output_sqnr_db", "fallback")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _experts(tokens: Mapping[str, Sequence[int]]) -> str:
    if not tokens:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{min(counts)}</td><td>{max(counts)}</td>"
        f"<td>{sum(count == 0 for count in counts)}</td></tr>"
        for name, counts in tokens.items()
    )
    head = "<tr><th>layer</th><th>fewest tokens</th><th>most tokens</th><th>experts without any</th></tr>"
    return f"<h2>Tokens per expert</h2><table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f"<h2>{title}</h2><ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
