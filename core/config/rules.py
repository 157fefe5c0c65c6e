"""Rules: which quantizer a config turns on, and how. Both config forms become one list of rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from octavo.core.errors import ConfigError

if TYPE_CHECKING:  # pydantic costs more than all the rest of `octavo.quantize`: imported on use
    from octavo.core.config.attributes import QuantizerAttributes

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """One entry of a config.

    Attributes:
        pattern: Glob on the quantizer's full name.
        parent_class: Only quantizers of such layers (`nn.Linear`), or None for all.
        attributes: Checked attribute sets, one per stage of a sequential quantizer; None only toggles.
        enable: Turns the quantizers on or off; None leaves that to the attributes.
        merges: Attributes merge into earlier ones instead of replacing them.
    """

    pattern: str
    parent_class: str | None = None
    attributes: tuple[Attributes, ...] | None = None
    enable: bool | None = None
    merges: bool = False

    def __str__(self) -> str:
        """Return the entry as a user would name it."""
        return f"{self.pattern!r}" + (f" in {self.parent_class}" if self.parent_class else "")

    def matches(self, name: str, classes: Collection[str]) -> bool:
        """Whether the rule is about the quantizer `name` of a layer whose class has these names."""
        return (self.parent_class is None or self.parent_class in classes) and fnmatchcase(name, self.pattern)

    @property
    def turns_off(self) -> bool:
        """Whether the entry, or an attribute set in it, says `enable` False."""
        return self.enable is False or any(stage.get("enable") is False for stage in self.attributes or ())


@dataclass(frozen=True)
class Decision:
    """What a config says of one quantizer.

    Attributes:
        stages: Attributes of each stage; empty when no rule gave any.
        rules: The rules that matched it or one of its stages, in order.
    """

    stages: tuple[QuantizerAttributes, ...]
    rules: tuple[Rule, ...]

    @property
    def enabled(self) -> bool:
        """Whether any stage quantizes."""
        return any(stage.enable for stage in self.stages)


def decide(
    name: str,
    classes: Collection[str],
    rules: Sequence[Rule],
    before: Sequence[Attributes] = (),
    aliases: Sequence[str] = (),
) -> Decision:
    """Apply `rules` in order to the quantizer `name` of a layer whose class goes by `classes`.

    The stages of a sequential quantizer are also matched one by one, as `<name>.0`, `<name>.1`, …

    Args:
        name: The quantizer's full name.
        classes: Names of its layer's class.
        rules: The config.
        before: Attributes of the stages that the quantizer has already.
        aliases: Names of the parts that it stands for together, which a rule may match instead: all or none.

    Raises:
        ConfigError: a rule matches some of the aliases.
    """
    from octavo.core.config.attributes import QuantizerAttributes

    stages = list(before)
    matched: list[Rule] = []
    for rule in rules:
        numbers = range(len(stages)) if len(stages) > 1 else ()
        whole = rule.matches(name, classes) or _matches_all(rule, name, classes, aliases)
        hits = [i for i in numbers if rule.matches(f"{name}.{i}", classes)]
        if whole or hits:
            stages = _applied(rule, stages, None if whole else hits)
            matched.append(rule)
    return Decision(tuple(QuantizerAttributes(**stage) for stage in stages), tuple(matched))


def _matches_all(rule: Rule, name: str, classes: Collection[str], aliases: Sequence[str]) -> bool:
    matched = [alias for alias in aliases if rule.matches(alias, classes)]
    if matched and len(matched) < len(aliases):
        raise ConfigError(
            f"entry {rule} matches {matched[0]!r} and {len(matched)} of {len(aliases)} parts of {name!r}, which is one "
            "parameter with one format; use a glob that matches all of them, or none"
        )
    return bool(matched)


def _applied(rule: Rule, stages: list[Attributes], hits: Collection[int] | None) -> list[Attributes]:
    """Return the stages after `rule` acted on those at the indices `hits`, or on the whole quantizer (None)."""
    if rule.attributes is not None and (len(rule.attributes) > 1 or not rule.merges):
        enable = rule.enable is not False
        new = [{**stage, "enable": stage.get("enable", True) and enable} for stage in rule.attributes]
        if hits is None:
            return new
        return [part for i, stage in enumerate(stages) for part in (new if i in hits else [stage])]
    toggle = {} if rule.enable is None else {"enable": rule.enable}
    change = {**(rule.attributes[0] if rule.attributes else {}), **toggle}
    stages = stages or [{}]
    return [{**stage, **change} if hits is None or i in hits else stage for i, stage in enumerate(stages)]
