"""From what a user passes as config (a preset's name, a dict, a recipe file) to a checked config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.config.presets import Config, preset
from octavo.core.errors import ConfigError, nearest

_KEYS = ("quant_cfg", "algorithm", "effective_bits")
_RECIPE_KEYS = ("include", *_KEYS)


def load_config(config: str | Mapping[str, Any]) -> Config:
    """Return a checked copy of `config`.

    Args:
        config: A preset's name, or a dict with `quant_cfg` and `algorithm` (`max` when left out).

    Raises:
        ConfigError: the name or a key is unknown, or `quant_cfg` is missing.
    """
    if isinstance(config, str):
        return preset(config)
    _check_keys(config, _KEYS, "config")
    if "quant_cfg" not in config:
        raise ConfigError(f"config has no 'quant_cfg', found keys {sorted(config)}")
    return copy.deepcopy({"quant_cfg": config["quant_cfg"], "algorithm": config.get("algorithm", "max")})


def merge_configs(config: str | Mapping[str, Any], *others: str | Mapping[str, Any]) -> Config:
    """Join the `quant_cfg` lists of configs in order; the first algorithm that is not None stays.

    A KV preset is added to a model preset this way:
    `merge_configs(octavo.FP8_DEFAULT_CFG, octavo.FP8_KV_CFG)`.

    Raises:
        ConfigError: a config is in the older dict form, whose entries mean something else.
    """
    merged = load_config(config)
    for other in map(load_config, others):
        for part in (merged, other):
            if not isinstance(part["quant_cfg"], list):
                raise ConfigError("only configs whose quant_cfg is an ordered list of entries can be joined")
        merged["quant_cfg"] += other["quant_cfg"]
        merged["algorithm"] = merged["algorithm"] if merged["algorithm"] is not None else other["algorithm"]
    return merged


def load_recipe(path: str | Path) -> Config:
    """Read a YAML recipe: a config whose `include` lists presets and further recipe files.

    Included configs come first, in order; paths are relative to the recipe. The recipe's own `algorithm`, if
    it has one, wins; where nothing names one, it is `max`.

    Raises:
        ConfigError: the file is missing, is not YAML, has unknown keys, or includes itself.
    """
    return load_config(_load_recipe(Path(path), ()))


def _load_recipe(path: Path, including: tuple[Path, ...]) -> Config:
    path = path.resolve()
    if path in including:
        raise ConfigError(f"recipe {path} includes itself, through {' -> '.join(map(str, including))}")
    if not path.is_file():
        raise ConfigError(f"recipe {path} does not exist")
    recipe = _read_yaml(path)
    include = recipe.get("include", [])
    if not isinstance(include, list):
        raise ConfigError(
            f"recipe {path}: include must be a list of preset names and .yaml files, found {include!r}"
        )
    parts = [_included(name, path, including) for name in include]
    if "quant_cfg" in recipe:
        parts.append({"quant_cfg": recipe["quant_cfg"]})
    if not parts:
        raise ConfigError(f"recipe {path} has neither 'include' nor 'quant_cfg'")
    merged = merge_configs(*({"algorithm": None, **part} for part in parts))
    if "algorithm" in recipe:
        return {**merged, "algorithm": recipe["algorithm"]}
    if not any("algorithm" in part for part in parts):
        del merged["algorithm"]  # unsaid, which is not the same as None
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} cannot be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"recipe {path} must be a mapping, found {type(recipe).__name__}")
    _check_keys(recipe, _RECIPE_KEYS, f"recipe {path}")
    return recipe


def _included(name: Any, path: Path, including: tuple[Path, ...]) -> Config:
    if isinstance(name, str) and name.endswith((".yaml", ".yml")):
        return _load_recipe(path.parent / name, (*including, path))
    if not isinstance(name, str):
        raise ConfigError(f"recipe {path}: include lists preset names and .yaml files, found {name!r}")
    return preset(name)


def _check_keys(config: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where} must be a preset's name or a dict, found {type(config).__name__}")
    for key in config.keys() - set(known):
        raise ConfigError(
            f"{where}: unknown key {key!r}; known: {', '.join(known)}.{nearest(str(key), known)}"
        )
