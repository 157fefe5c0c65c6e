"""Modes: recorded, reversible transformations of a model. `storage` saves and restores them."""

from octavo.core.modes.record import ModeRecord, history, last_record, set_history
from octavo.core.modes.registry import Mode, mode_named
from octavo.core.modes.transaction import applying

__all__ = [
    "Mode",
    "ModeRecord",
    "applying",
    "history",
    "last_record",
    "mode_named",
    "set_history",
]
