"""Megatron-core: models whose layers are shared by ranks."""

from octavo.adapters.megatron_core.checkpoint import load, save
from octavo.adapters.megatron_core.script import schedule_loop, with_modes_of

__all__ = ["load", "save", "schedule_loop", "with_modes_of"]
