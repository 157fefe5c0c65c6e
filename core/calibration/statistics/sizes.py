"""How many bytes statistics take, and which of them fit into a budget together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.core.calibration.statistics.needs import Needs
from octavo.core.errors import CalibrationError, ConfigError

_CHANNEL_BYTES = 4 + 3 * 8  # fp32 maximum, three fp64 sums
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_UNITS = ("", "k", "m", "g", "t")


@dataclass(frozen=True)
class InputSize:
    """Bytes that the statistics of one distinct input take.

    Attributes:
        name: The quantizer that shows it first.
        channels: Maxima and sums of each channel.
        gram: XᵀX, or the tokens that it follows from while these are fewer: what both take at most.
        held_tokens: Tokens that are held.
    """

    name: str
    channels: int
    gram: int
    held_tokens: int

    @classmethod
    def of(cls, name: str, num_channels: int, needs: Needs, itemsize: int) -> InputSize:
        """Return the sizes for an input [..., in] whose values take `itemsize` bytes."""
        gram = 4 * num_channels**2 if needs.gram else 0
        return cls(name, _CHANNEL_BYTES * num_channels, gram, needs.held_tokens * num_channels * itemsize)

    @property
    def total(self) -> int:
        """All of it."""
        return self.channels + self.gram + self.held_tokens


def passes_within(sizes: Sequence[InputSize], budget: int | None) -> list[list[InputSize]]:
    """Divide inputs, in their order, into as few runs as fit the budget one at a time; None is no limit.

    Raises:
        CalibrationError: one input exceeds the budget alone; it is named.
    """
    passes: list[list[InputSize]] = [[]]
    taken = 0
    for size in sizes:
        if budget is not None and size.total > budget:
            raise CalibrationError(
                f"the statistics of {size.name} take {size.total:,} bytes ({size.gram:,} of them XᵀX), and the budget "
                f"(stats_budget, --stats-budget) is {budget:,}; give at least that many, or choose an algorithm that "
                "needs less"
            )
        if budget is not None and taken + size.total > budget:
            passes.append([])
            taken = 0
        passes[-1].append(size)
        taken += size.total
    return passes


def summarize(sizes: Sequence[InputSize], budget: int | None) -> str:
    """Return a line on what statistics take, and in how many passes they are gathered."""
    parts = {
        "channels": sum(size.channels for size in sizes),
        "XᵀX": sum(size.gram for size in sizes),
        "held tokens": sum(size.held_tokens for size in sizes),
    }
    shown = ", ".join(f"{name} {readable(number)}" for name, number in parts.items() if number)
    total = readable(sum(parts.values()))
    limit = "" if budget is None else f"; {_passes(sizes, budget)} within the budget of {readable(budget)}"
    return f"statistics of {len(sizes)} distinct inputs: {total} ({shown}){limit}"


def parse_bytes(size: int | str | None) -> int | None:
    """Read a number of bytes: 2000000, `2GB` (10⁹ each) or `2GiB` (2³⁰ each); None stays.

    Raises:
        ConfigError: it is none, or not above 0.
    """
    if size is None:
        return None
    match = _SIZE.fullmatch(str(size))
    number = 0
    if match is not None and not isinstance(size, bool):
        step = 1024 if match[3] else 1000
        number = int(float(match[1]) * step ** _UNITS.index(match[2].lower()))
    if number < 1:
        raise ConfigError(
            f"stats_budget (--stats-budget) {size!r}: expected a number of bytes above 0, as 500000000, 500MB or 2GiB"
        )
    return number


def _passes(sizes: Sequence[InputSize], budget: int) -> str:
    if any(size.total > budget for size in sizes):
        return "not"
    number = len(passes_within(sizes, budget))
    return "one pass over the data" if number == 1 else f"{number} passes over the data"


def readable(num_bytes: int) -> str:
    """Return a number of bytes in MB."""
    return f"{num_bytes / 1e6:,.2f} MB"
