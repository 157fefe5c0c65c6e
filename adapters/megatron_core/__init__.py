"""Megatron-core: models whose layers are shared by ranks."""

from octavo.adapters.megatron_core.checkpoint import load, save

__all__ = ["load", "save"]
