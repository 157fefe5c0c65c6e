"""Megatron-core: models whose layers are shared by ranks."""
