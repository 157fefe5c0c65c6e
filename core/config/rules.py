"""Rules: which quantizer a config turns on, and how. Both config forms become one list of rules.

The ordered list (`{"quantizer_name": glob, "parent_class": …, "cfg": {…} | […], "enable": …}`): later entries
win, and `cfg` replaces the whole attribute set. The older dict (glob → attributes): `"default"` first, then
attributes merge in order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from octavo.core.errors import ConfigError, nearest

if TYPE_CHECKING:  # pydantic costs more than all the rest of `octavo.quantize`: imported on use
    from octavo.core.config.attributes import QuantizerAttributes

_ENTRY_KEYS = ("quantizer_name", "parent_class", "cfg", "enable")


@dataclass(frozen=True)
class Rule:
    """One entry of a config.

    Attributes:
        pattern: Glob on the quantizer's full name.
        parent_class: Only quantizers of such layers (`nn.Linear`), or None for all.
        attributes: Attribute sets, one per stage of a sequential quantizer; None only toggles.
        enable: Turns the quantizers on or off; None leaves that to the attributes.
        merges: Attributes merge into earlier ones instead of replacing them.
    """

    pattern: str
    parent_class: str | None = None
    attributes: tuple[dict[str, Any], ...] | None = None
    enable: bool | None = None
    merges: bool = False

    def __str__(self) -> str:
        """Return the entry as a user would name it."""
        return f"{self.pattern!r}" + (f" in {self.parent_class}" if self.parent_class else "")

    def matches(self, name: str, classes: Collection[str]) -> bool:
        """Whether the rule is about the quantizer `name` of a layer whose class has these names."""
        return (self.parent_class is None or self.parent_class in classes) and fnmatchcase(name, self.pattern)


@dataclass(frozen=True)
class Decision:
    """What a config says of one quantizer.

    Attributes:
        stages: Attributes of each stage; empty when no rule gave any.
        rule: The last rule that matched, or None when none did.
    """

    stages: tuple[QuantizerAttributes, ...]
    rule: Rule | None

    @property
    def enabled(self) -> bool:
        """Whether any stage quantizes."""
        return any(stage.enable for stage in self.stages)


def parse_rules(quant_cfg: Any) -> list[Rule]:
    """Read the `quant_cfg` of a config, in either form.

    Raises:
        ConfigError: it is neither form, or an entry has unknown keys or none that say anything.
    """
    if isinstance(quant_cfg, Mapping):
        ordered = {"default": quant_cfg["default"], **quant_cfg} if "default" in quant_cfg else quant_cfg
        return [rule for key, value in ordered.items() for rule in _dict_rules(key, value)]
    if not isinstance(quant_cfg, Sequence) or isinstance(quant_cfg, str):
        raise ConfigError(
            f"quant_cfg must be a list of entries or a dict of globs, found {type(quant_cfg).__name__}"
        )
    return [rule for index, entry in enumerate(quant_cfg) for rule in _list_rules(index, entry)]


def decide(name: str, classes: Collection[str], rules: Sequence[Rule]) -> Decision:
    """Apply `rules` in order to the quantizer `name` of a layer whose class goes by `classes`.

    The stages of a sequential quantizer are also matched one by one, as `<name>.0`, `<name>.1`, …
    """
    from octavo.core.config.attributes import parse_attributes

    stages: list[dict[str, Any]] = []
    last: Rule | None = None
    for rule in rules:
        whole = rule.matches(name, classes)
        hits = [i for i in range(len(stages)) if whole or rule.matches(f"{name}.{i}", classes)]
        if whole or (len(stages) > 1 and hits):
            stages, last = _applied(rule, stages, hits), rule
    where = f"{name} (entry {last})"
    return Decision(tuple(parse_attributes(stage, where) for stage in stages), last)


def _applied(rule: Rule, stages: list[dict[str, Any]], hits: list[int]) -> list[dict[str, Any]]:
    """Return the stages after `rule` acted on those at the indices `hits` (all, where there are none yet)."""
    toggle = {} if rule.enable is None else {"enable": rule.enable}
    if rule.attributes is not None and (len(rule.attributes) > 1 or not rule.merges):
        enable = rule.enable is not False
        return [{**stage, "enable": stage.get("enable", True) and enable} for stage in rule.attributes]
    change = {**(rule.attributes[0] if rule.attributes else {}), **toggle}
    stages = stages or [{}]
    return [{**stage, **change} if i in hits or not hits else stage for i, stage in enumerate(stages)]


def _list_rules(index: int, entry: Any) -> list[Rule]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"quant_cfg[{index}] must be a dict, found {entry!r}")
    if "quantizer_name" not in entry:
        if len(entry) == 1 and not set(entry) & set(_ENTRY_KEYS):
            return _dict_rules(*next(iter(entry.items())))
        raise ConfigError(f"quant_cfg[{index}] has no 'quantizer_name': {dict(entry)!r}")
    for key in entry.keys() - set(_ENTRY_KEYS):
        raise ConfigError(f"quant_cfg[{index}]: unknown key {key!r}.{nearest(str(key), _ENTRY_KEYS)}")
    pattern, cfg = entry["quantizer_name"], entry.get("cfg")
    if cfg is None and "enable" not in entry:
        raise ConfigError(
            f"quant_cfg[{index}] ({pattern!r}) has neither 'cfg' nor 'enable': it would do nothing"
        )
    if cfg is not None and not cfg:
        raise ConfigError(f"quant_cfg[{index}] ({pattern!r}): 'cfg' is empty; leave it out to only toggle")
    return [Rule(pattern, entry.get("parent_class"), _stages(cfg, pattern), entry.get("enable"))]


def _dict_rules(key: Any, value: Any) -> list[Rule]:
    if not isinstance(key, str):
        raise ConfigError(
            f"quant_cfg: patterns are globs, found {key!r}; write the names it should match as a glob"
        )
    pattern = "*" if key == "default" else key
    if _is_class_scope(value):
        return [Rule(glob, key, _stages(v, glob), merges=True) for glob, v in value.items()]
    return [Rule(pattern, None, _stages(value, pattern), merges=True)]


def _stages(cfg: Any, pattern: str) -> tuple[dict[str, Any], ...] | None:
    if cfg is None:
        return None
    stages = cfg if isinstance(cfg, (list, tuple)) else [cfg]
    if not all(isinstance(stage, Mapping) for stage in stages):
        raise ConfigError(
            f"{pattern!r}: expected quantizer attributes (a dict, or a list of them), found {cfg!r}"
        )
    return tuple(dict(stage) for stage in stages)


def _is_class_scope(value: Any) -> bool:
    """Whether a dict entry is the nested form `{"nn.Linear": {glob: attributes}}`."""
    from octavo.core.config.attributes import QuantizerAttributes

    if not isinstance(value, Mapping) or not value or set(value) & QuantizerAttributes.model_fields.keys():
        return False
    return all(isinstance(inner, Mapping) for inner in value.values())
