"""Mode records: the ordered history of what was done to a model, as JSON-ready data on the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from octavo.core.errors import CheckpointError

T = TypeVar("T")
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

    @classmethod
    def from_json(cls, data: Any, where: str) -> ModeRecord:
        """Read what `to_json` returned; `where` says which record it is, for messages.

        Raises:
            CheckpointError: a part is missing or of another kind; it is named.
        """
        return cls(
            part(data, "mode", str, where),
            part(data, "version", int, where),
            part(data, "config", dict, where),
            part(data, "state", dict, where),
        )


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


def with_history(model: nn.Module) -> nn.Module:
    """Return `model`, or the module in it that has the history: what wraps a model, as PEFT does, has none."""
    return next((module for module in model.modules() if history(module)), model)


def part(data: Any, name: str, kind: type[T], where: str) -> T:
    """Return the part `name` of an object read from JSON.

    Raises:
        CheckpointError: `data` is no object, lacks the part, or the part is no `kind`.
    """
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where} must be an object, found {data!r}")
    if name not in data:
        raise CheckpointError(f"{where} has no {name!r}, found {', '.join(map(repr, data)) or 'nothing'}")
    if not isinstance(data[name], kind):
        raise CheckpointError(f"{where} has {data[name]!r} as {name!r}, expected type {kind.__name__}")
    found: T = data[name]
    return found
