"""Presets: named configs as plain dicts, read from presets.yaml."""

from __future__ import annotations

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
    known = _table()["model"] | _table()["own"] | _table()["kv"]
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}; `octavo presets` lists all.{nearest(name, known)}")
    fresh: Config = _fresh(_expand(name, known[name]))
    return fresh


def preset_names() -> list[str]:
    """Return the names of all presets, model presets first (ModelOpt's, then Octavo's), then those for the KV cache."""
    return [*_table()["model"], *_table()["own"], *_table()["kv"]]


def kv_preset_names() -> list[str]:
    """Return the names of the presets that only say how the KV cache is quantized."""
    return list(_table()["kv"])


@lru_cache(maxsize=1)
def expected_misses() -> frozenset[tuple[str, str | None, bool]]:
    """Return the entries of presets that may well match nothing in a given model: (glob, class, turns off)."""
    entries = [entry for name in preset_names() for entry in preset(name)["quant_cfg"]]
    off = {(e["quantizer_name"], e.get("parent_class"), True) for e in entries if e.get("enable") is False}
    on = {(glob + suffix, None, False) for glob in _table()["optional"] for suffix in _SUFFIXES}
    on |= {(glob, None, False) for glob in _table()["optional_quantizers"]}
    return frozenset(off | on)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table


def _expand(name: str, short: Config) -> Config:
    rules: list[Config] = []
    for suffix, key in zip(_SUFFIXES, ("weights", "inputs"), strict=True):
        if key in short:
            rules += [_rule(glob + suffix, short[key]) for glob in short.get("only", ["*"])]
    rules += short.get("rules", [])
    if name not in _table()["kv"]:
        disabled = [_rule(glob, None) for glob in short.get("disable", [])]
        rules = [_rule("*", None), *rules, *_table()["disabled"], *disabled]
    return {"quant_cfg": rules, "algorithm": short["algorithm"]}


def _rule(glob: str, cfg: Any) -> Config:
    return {"quantizer_name": glob, "enable": False} if cfg is None else {"quantizer_name": glob, "cfg": cfg}


def _fresh(value: Any) -> Any:
    """Copy a value so that no two of its parts are one object; `num_bits` and `scale_bits` become tuples."""
    if isinstance(value, dict):
        return {
            key: tuple(item) if key in ("num_bits", "scale_bits") and isinstance(item, list) else _fresh(item)
            for key, item in value.items()
        }
    return [_fresh(item) for item in value] if isinstance(value, list) else value
