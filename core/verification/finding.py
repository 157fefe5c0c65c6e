"""Finding: one thing that a reader would find wrong in a checkpoint's files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: `error` where the reader would refuse the checkpoint or compute wrong numbers; `warning` where it
            loads, but something is lost, or nobody knows whether it loads.
        place: The tensor, the field of a JSON file, or the file.
        found: What is there.
        expected: What the reader needs.
        advice: What to do.
    """

    severity: Severity
    place: str
    found: str
    expected: str
    advice: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.place}: found {self.found}; expected {self.expected}. {self.advice}"

    def to_json(self) -> dict[str, str]:
        """Return the fields, JSON-ready."""
        return asdict(self)


def error(place: str, found: str, expected: str, advice: str) -> Finding:
    """Return a finding that makes the checkpoint unusable."""
    return Finding("error", place, found, expected, advice)


def warning(place: str, found: str, expected: str, advice: str) -> Finding:
    """Return a finding with which the checkpoint loads."""
    return Finding("warning", place, found, expected, advice)
