"""Modes: recorded, reversible transformations of a model, and their storage."""

from octavo.core.modes.record import ModeRecord, history, last_record, set_history
from octavo.core.modes.registry import Mode, mode_named
from octavo.core.modes.storage import restore, save
from octavo.core.modes.transaction import applying

__all__ = [
    "Mode",
    "ModeRecord",
    "applying",
    "history",
    "last_record",
    "mode_named",
    "restore",
    "save",
    "set_history",
]
