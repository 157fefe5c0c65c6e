"""Changing the block length of a config's integer formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from octavo.core.config.load import load_config
from octavo.core.config.presets import Config
from octavo.core.errors import ConfigError
from octavo.core.formats import element_type


def with_block_size(config: str | Mapping[str, Any], block_size: int) -> Config:
    """Return the config with integer blocks along the last dim of length `block_size`.

    NVFP4 and MX formats define their block length; it is never changed.

    Raises:
        ConfigError: the config has no integer format with blocks, or `block_size` is no positive integer.
    """
    if not isinstance(block_size, int) or block_size < 1:
        raise ConfigError(f"block size {block_size}: must be at least 1, and an integer")
    changed = load_config(config)
    blocks = [sets["block_sizes"] for sets in _sets_with_blocks(changed["quant_cfg"]) if _is_integer(sets)]
    axes = [(sizes, axis) for sizes in blocks for axis in (-1, "-1") if isinstance(sizes.get(axis), int)]
    if not axes:
        raise ConfigError(
            f"block size {block_size} was asked for, and the config has no integer format with blocks; "
            "the blocks of NVFP4 and MX formats are part of the format"
        )
    for sizes, axis in axes:
        sizes[axis] = block_size
    return changed


def _sets_with_blocks(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the attribute sets that have blocks, wherever in a `quant_cfg` of either form they stand."""
    if isinstance(value, dict) and isinstance(value.get("block_sizes"), dict):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _sets_with_blocks(inner)


def _is_integer(attributes: dict[str, Any]) -> bool:
    num_bits = attributes.get("num_bits", 8)
    is_integer = isinstance(num_bits, int) or (
        isinstance(num_bits, str) and not element_type(num_bits).is_float
    )
    return is_integer and attributes["block_sizes"].get("scale_bits") is None
