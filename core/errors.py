"""Exceptions that users meet: each says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

FOREIGN_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
)
"""What somebody else's code (a plugin, a model's forward) may raise and still be reported, not propagated."""


class OctavoError(Exception):
    """Base of every error that Octavo raises on bad input or failed work."""


class ConfigError(OctavoError, ValueError):
    """A config, recipe or preset name is wrong."""


class UnsupportedError(OctavoError, NotImplementedError):
    """What was asked is understood and is not available for this model, format or version."""


class PlanError(OctavoError, ValueError):
    """The plan found problems that would make the run fail or mislead; nothing was changed."""


class ShapeError(OctavoError, ValueError):
    """A tensor's shape or dtype does not fit its format."""


class CalibrationError(OctavoError, RuntimeError):
    """Calibration yielded nothing usable: no data, NaN, infinity or a quantizer never called."""


class TrainingError(OctavoError, RuntimeError):
    """Training cannot go on: its loss is not finite, or what it trains is not what it should be."""


class ModeError(OctavoError, RuntimeError):
    """A mode cannot be applied to, saved from or restored on this model."""


class CheckpointError(OctavoError, ValueError):
    """A checkpoint on disk is missing, damaged, unsafe or of another kind than expected."""


class ExportError(OctavoError, ValueError):
    """A model cannot be written in the requested form."""


class PluginError(OctavoError, RuntimeError):
    """A plugin is missing, broken or answers in a wrong way."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to `name`, else an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def listed(items: Sequence[str], limit: int = 5) -> str:
    """Join the first `limit` items, and say how many there are in all when some are left out."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more ({len(items)} in all)"
