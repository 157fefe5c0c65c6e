"""A scatter plot of errors over depth, as SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 44
_COLORS = ("#1b6ca8", "#c8553d", "#3f7d3a", "#8a4fa8", "#b07a00", "#12867a", "#b03a72")
_OTHER = "#6b6b6b"


def error_plot(rows: Sequence[Mapping[str, Any]], key: str, label: str) -> str:
    """Return a plot of `key` (dB) over the blocks of a model, a color for each kind of layer, and its legend.

    Args:
        rows: The report's rows; those without a depth or without a number are left out.
        key: `weight_sqnr_db` or `output_sqnr_db`.
        label: What the axis says.

    Returns:
        HTML; empty where there is nothing to plot.
    """
    points = [row for row in rows if row["depth"] is not None and row[key] is not None]
    if not points:
        return ""
    colors = _colors([_kind(row["weight"]) for row in rows])
    axes = _Axes(max(row["depth"] for row in points), [row[key] for row in points])
    radius = 4 if len(points) <= 500 else 2.5
    marks = "".join(_mark(row, key, axes, colors, radius) for row in points)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)} by depth">'
        f"{''.join(axes.lines(label))}{marks}</svg><figcaption>{_legend(colors)}</figcaption></figure>"
    )


class _Axes:
    """Where a depth and a number of decibels are in the picture, in pixels."""

    def __init__(self, deepest: int, values: Sequence[float]) -> None:
        self._deepest = deepest
        self._step = _nice((max(values) - min(values)) / 5 or 1)
        self._low = math.floor(min(values) / self._step) * self._step
        self._high = max(math.ceil(max(values) / self._step) * self._step, self._low + self._step)

    def x(self, depth: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (depth + 0.5) / (self._deepest + 1)

    def y(self, value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self._high - value) / (self._high - self._low)

    def lines(self, label: str) -> Iterator[str]:
        """Yield grid lines and texts."""
        for index in range(round((self._high - self._low) / self._step) + 1):
            value = self._low + index * self._step
            y = self.y(value)
            yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        for depth in range(1, self._deepest + 1):
            yield f'<path d="M{self.x(depth - 0.5):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#eee"/>'
        for depth in range(0, self._deepest + 1, max(1, int(_nice((self._deepest + 1) / 16)))):
            yield f'<text x="{self.x(depth):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{depth}</text>'
        middle = (_HEIGHT - _BOTTOM + _TOP) / 2
        yield f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">block</text>'
        yield f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(label)}</text>'


def _mark(row: Mapping[str, Any], key: str, axes: _Axes, colors: Mapping[str, str], radius: float) -> str:
    """Return a dot; kinds of layers stand side by side within their block."""
    kinds = list(colors)
    kind = _kind(row["weight"]) if _kind(row["weight"]) in colors else "other"
    shift = ((kinds.index(kind) + 0.5) / len(kinds) - 0.5) * 0.8
    title = escape(f"{row['weight']}: {row[key]:.1f} dB")
    return (
        f'<circle cx="{axes.x(row["depth"] + shift):.1f}" cy="{axes.y(row[key]):.1f}" r="{radius}" '
        f'fill="{colors[kind]}" fill-opacity=".75"><title>{title}</title></circle>'
    )


def _colors(kinds: Sequence[str]) -> dict[str, str]:
    """Return a color for each of the most frequent kinds, and one for all others."""
    counts = Counter(kinds)
    named = [kind for kind, _ in counts.most_common(len(_COLORS))]
    found = dict(zip((kind for kind in counts if kind in named), _COLORS, strict=False))
    return found if len(counts) <= len(_COLORS) else {**found, "other": _OTHER}


def _legend(colors: Mapping[str, str]) -> str:
    return "".join(
        f'<span><i style="background:{color}"></i>{escape(kind)}</span>' for kind, color in colors.items()
    )


def _kind(name: str) -> str:
    """Return the part of a weight's name that says what it is: `q_proj`, `down_proj`."""
    names = [part for part in name.partition("[")[0].removesuffix(".weight").split(".") if not part.isdigit()]
    return names[-1] if names else "weight"


def _nice(step: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)
