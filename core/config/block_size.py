"""Changing the block length of a config's integer formats."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from octavo.core.config.load import load_config
from octavo.core.config.presets import Config
from octavo.core.errors import ConfigError


def with_block_size(config: str | Mapping[str, Any], block_size: int) -> Config:
    """Return the config with integer blocks along the last dim of length `block_size`.

    NVFP4 and MX formats define their block length; it is never changed.

    Raises:
        ConfigError: the config has no integer format with blocks, or `block_size` is not positive.
    """
    if block_size < 1:
        raise ConfigError(f"block size {block_size}: must be at least 1")
    changed = copy.deepcopy(load_config(config))
    entries = changed["quant_cfg"] if isinstance(changed["quant_cfg"], list) else []
    stages = [stage for entry in entries for stage in _stages(entry.get("cfg"))]
    integer = [s for s in stages if isinstance(s.get("num_bits"), int) and -1 in (s.get("block_sizes") or {})]
    integer = [stage for stage in integer if "scale_bits" not in stage["block_sizes"]]
    if not integer:
        raise ConfigError(
            f"block size {block_size} was asked for, and the config has no integer format with blocks; "
            "the blocks of NVFP4 and MX formats are part of the format"
        )
    for stage in integer:
        stage["block_sizes"][-1] = block_size
    return changed


def _stages(cfg: Any) -> list[dict[str, Any]]:
    if isinstance(cfg, dict):
        return [cfg]
    return list(cfg) if isinstance(cfg, (list, tuple)) else []
