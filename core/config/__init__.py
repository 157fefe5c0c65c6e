"""Configs: attributes of quantizers, rules in both forms, presets and recipes."""

from octavo.core.config.block_size import with_block_size
from octavo.core.config.load import load_config, load_recipe, merge_configs
from octavo.core.config.presets import kv_preset_names, preset, preset_names

__all__ = [
    "kv_preset_names",
    "load_config",
    "load_recipe",
    "merge_configs",
    "preset",
    "preset_names",
    "with_block_size",
]
