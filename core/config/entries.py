"""Reading the entries of a config, in both forms, into rules.

The ordered list (`{"quantizer_name": glob, "parent_class": …, "cfg": {…} | […], "enable": …}`): later entries
win, and `cfg` replaces the whole attribute set. The older dict (glob → attributes): `"default"` first, then
attributes merge in order. In both, attributes turn the quantizer on unless they say `enable`
False. They are checked in every entry, whether or not it has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from octavo.core.config.rules import Attributes, Rule
from octavo.core.errors import ConfigError, nearest

_ENTRY_KEYS = ("quantizer_name", "parent_class", "cfg", "enable")


def parse_rules(quant_cfg: Any) -> list[Rule]:
    """Read the `quant_cfg` of a config, in either form.

    Raises:
        ConfigError: it is neither form, or an entry has keys or attributes that are unknown or of the wrong
            type, or none that say anything; the entry is named.
    """
    if isinstance(quant_cfg, Mapping):
        ordered = {"default": quant_cfg["default"], **quant_cfg} if "default" in quant_cfg else quant_cfg
        return [rule for key, value in ordered.items() for rule in _dict_rules(key, value)]
    if not isinstance(quant_cfg, Sequence) or isinstance(quant_cfg, str):
        raise ConfigError(
            f"quant_cfg must be a list of entries or a dict of globs, found {type(quant_cfg).__name__}"
        )
    return [rule for index, entry in enumerate(quant_cfg) for rule in _list_rules(index, entry)]


def _list_rules(index: int, entry: Any) -> list[Rule]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"quant_cfg[{index}] must be a dict, found {entry!r}")
    if "quantizer_name" not in entry:
        if len(entry) == 1 and not set(entry) & set(_ENTRY_KEYS):
            return _dict_rules(*next(iter(entry.items())))
        raise ConfigError(f"quant_cfg[{index}] has no 'quantizer_name': {dict(entry)!r}")
    for key in entry.keys() - set(_ENTRY_KEYS):
        raise ConfigError(f"quant_cfg[{index}]: unknown key {key!r}.{nearest(str(key), _ENTRY_KEYS)}")
    pattern, parent_class, cfg = entry["quantizer_name"], entry.get("parent_class"), entry.get("cfg")
    _check_type(index, "quantizer_name", pattern, str)
    if parent_class is not None:
        _check_type(index, "parent_class", parent_class, str)
    if "enable" in entry:
        _check_type(index, "enable", entry["enable"], bool)
    if cfg is None and "enable" not in entry:
        raise ConfigError(
            f"quant_cfg[{index}] ({pattern!r}) has neither 'cfg' nor 'enable': it would do nothing"
        )
    if cfg is not None and not cfg:
        raise ConfigError(f"quant_cfg[{index}] ({pattern!r}): 'cfg' is empty; leave it out to only toggle")
    rule = Rule(pattern, parent_class, enable=entry.get("enable"))
    return [rule if cfg is None else replace(rule, attributes=stage_attributes(cfg, rule))]


def _check_type(index: int, key: str, value: Any, expected: type) -> None:
    if not isinstance(value, expected):
        raise ConfigError(f"quant_cfg[{index}]: {key} must be a {expected.__name__}, found {value!r}")


def _dict_rules(key: Any, value: Any, parent_class: str | None = None) -> list[Rule]:
    if not isinstance(key, str):
        raise ConfigError(
            f"quant_cfg: patterns are globs, found {key!r}; write the names it should match as a glob"
        )
    if parent_class is None and _is_class_scope(key, value):
        return [rule for glob, inner in value.items() for rule in _dict_rules(glob, inner, key)]
    rule = Rule("*" if key == "default" else key, parent_class, merges=True)
    stages = stage_attributes(value, rule)
    return [
        replace(rule, attributes=tuple({"enable": True, **stage} if stage else stage for stage in stages))
    ]


def stage_attributes(cfg: Any, rule: Rule) -> tuple[Attributes, ...]:
    """Return the checked attribute sets of `cfg`, a dict or a list of them; `rule` is named in messages.

    Raises:
        ConfigError: an attribute is unknown or of the wrong type.
    """
    from octavo.core.config.attributes import parse_attributes

    stages = cfg if isinstance(cfg, (list, tuple)) else [cfg]
    if not stages or not all(isinstance(stage, Mapping) for stage in stages):
        raise ConfigError(
            f"entry {rule}: expected quantizer attributes (a dict, or a list of them), found {cfg!r}"
        )
    return tuple(parse_attributes(dict(s), f"entry {rule}").model_dump(exclude_unset=True) for s in stages)


def _is_class_scope(key: str, value: Any) -> bool:
    """Whether a dict entry is the nested form `{"nn.Linear": {glob: attributes}}`."""
    from octavo.core.config.attributes import QuantizerAttributes

    if key == "default" or set(key) & set("*?[") or not isinstance(value, Mapping) or not value:
        return False
    if set(value) & QuantizerAttributes.model_fields.keys():
        return False
    return all(isinstance(inner, Mapping) for inner in value.values())
