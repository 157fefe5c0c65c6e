"""Mode records: the ordered history of what was done to a model, as JSON-ready data on the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

_HISTORY = "_octavo_modes"


@dataclass(frozen=True)
class ModeRecord:
    """One mode that was applied to a model.

    Attributes:
        mode: The mode's name, `quantize`.
        version: Version of the mode's `state`.
        config: The config it was applied with, JSON-ready.
        state: What `restore` needs to rebuild the model's structure, JSON-ready. Tensors travel in the model's
            state dict.
    """

    mode: str
    version: int
    config: Mapping[str, Any]
    state: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return {"mode": self.mode, "version": self.version, "config": self.config, "state": self.state}


def history(model: nn.Module) -> tuple[ModeRecord, ...]:
    """Return the modes that were applied to `model`, in order."""
    return tuple(model.__dict__.get(_HISTORY, ()))


def last_record(model: nn.Module, mode: str) -> ModeRecord | None:
    """Return the newest record of `mode`, or None."""
    return next((record for record in reversed(history(model)) if record.mode == mode), None)


def set_history(model: nn.Module, records: tuple[ModeRecord, ...]) -> None:
    """Replace the history; an empty one leaves no trace on the model."""
    if records:
        model.__dict__[_HISTORY] = records
    else:
        model.__dict__.pop(_HISTORY, None)
