"""Applying modes: a mode completes, or the model is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from octavo.core.modes.record import ModeRecord, history, set_history
from octavo.core.modes.registry import mode_named


@contextmanager
def applying(model: nn.Module, mode: str, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Apply a mode inside the context, whose value is the `state` to fill in for the record.

    On any exception, interrupts included, the mode's `undo` runs and the history stays.
    """
    implementation, before = mode_named(mode), history(model)
    state: dict[str, Any] = {}
    record = ModeRecord(mode, implementation.version, config, state)
    try:
        yield state
        set_history(model, (*before, record))
    except BaseException:
        implementation.undo(model)
        set_history(model, before)
        raise
