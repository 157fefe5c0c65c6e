"""Presets: named configs as plain dicts, read from presets.yaml."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError, nearest

Config = dict[str, Any]
_SUFFIXES = ("weight_quantizer", "input_quantizer")


def preset(name: str) -> Config:
    """Return a fresh copy of the preset called `name`: `{"quant_cfg": [...], "algorithm": ...}`.

    Raises:
        ConfigError: there is no such preset.
    """
    known = _table()["model"] | _table()["kv"]
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}; `octavo presets` lists all.{nearest(name, known)}")
    return copy.deepcopy(_expand(name, known[name]))


def preset_names() -> list[str]:
    """Return the names of all presets, model presets first, then those for the KV cache."""
    return [*_table()["model"], *_table()["kv"]]


def kv_preset_names() -> list[str]:
    """Return the names of the presets that only say how the KV cache is quantized."""
    return list(_table()["kv"])


@lru_cache(maxsize=1)
def expected_misses() -> frozenset[str]:
    """Return the globs of presets that may well match nothing in a given model."""
    table = _table()
    patterns = {entry["quantizer_name"] for entry in table["disabled"]}
    patterns |= {glob for short in table["model"].values() for glob in short.get("off", [])}
    patterns |= {f"{glob}{suffix}" for glob in table["optional"] for suffix in _SUFFIXES}
    return frozenset({*patterns, "*", "*input_quantizer"})


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = _with_tuples(yaml.safe_load(text))
    return table


def _expand(name: str, short: Config) -> Config:
    rules: list[Config] = []
    for suffix, key in zip(_SUFFIXES, ("weights", "inputs"), strict=True):
        if key in short:
            rules += [_rule(glob + suffix, short[key]) for glob in short.get("only", ["*"])]
    rules += short.get("rules", [])
    if name in _table()["model"]:
        off = [_rule(glob, None) for glob in short.get("off", [])]
        rules = [_rule("*", None), *rules, *_table()["disabled"], *off]
    return {"quant_cfg": rules, "algorithm": short["algorithm"]}


def _rule(glob: str, cfg: Any) -> Config:
    return {"quantizer_name": glob, "enable": False} if cfg is None else {"quantizer_name": glob, "cfg": cfg}


def _with_tuples(value: Any) -> Any:
    """Turn the lists under `num_bits` and `scale_bits` into tuples, as users write them."""
    if isinstance(value, dict):
        return {
            key: tuple(item)
            if key in ("num_bits", "scale_bits") and isinstance(item, list)
            else _with_tuples(item)
            for key, item in value.items()
        }
    return [_with_tuples(item) for item in value] if isinstance(value, list) else value
