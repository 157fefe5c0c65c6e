"""Entries of a config that match no quantizer of a model, and configs that turn on none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from octavo.core.config.presets import expected_misses
from octavo.core.config.rules import Rule
from octavo.core.errors import listed, nearest
from octavo.core.plan.settings import LayerSetting


def unmatched_rules(layers: Iterable[LayerSetting], rules: Iterable[Rule]) -> list[Rule]:
    """Return the rules that match no quantizer of `layers`."""
    matched = {id(rule) for layer in layers for rule in layer.rules}
    return [rule for rule in rules if id(rule) not in matched]


def is_surprising(rule: Rule) -> bool:
    """Whether nobody expects that the rule matches nothing: presets carry rules for other model families."""
    return (rule.pattern, rule.parent_class, rule.turns_off) not in expected_misses()


def describe_unmatched(rule: Rule, layers: Sequence[LayerSetting]) -> str:
    """Return a sentence about a rule that matches nothing, with the nearest name."""
    classes = {name for layer in layers for name in layer.site.class_names()}
    if rule.parent_class is not None and rule.parent_class not in classes:
        hint = nearest(rule.parent_class, [name for name in classes if name.startswith("nn.")])
    else:
        hint = _nearest_name(rule.pattern.strip("*."), [name for layer in layers for name in layer.names()])
    return f"entry {rule} matches no quantizer of this model.{hint}"


def empty_problems(
    layers: Sequence[LayerSetting],
    unmatched: Iterable[Rule],
    attention: Iterable[str],
    reasons: Mapping[str, str],
) -> list[str]:
    """Return an error that gives every likely reason, if the config turns on no quantizer at all.

    Args:
        layers: The layers that can be quantized.
        unmatched: The rules that match nothing.
        attention: Sentences about attention layers that are left out.
        reasons: Why other layers, by name, cannot be quantized.
    """
    if any(layer.is_quantized for layer in layers):
        return []
    others = _describe_reasons(reasons)
    if not layers:
        return [f"the model has no layer that can be quantized{others}"]
    missed = [describe_unmatched(rule, layers) for rule in unmatched if not rule.turns_off]
    why = "; ".join([*missed, *attention]) or "every entry that matches leaves its quantizers off"
    example = layers[0].names()[0]
    return [f"the config turns on no quantizer: {why}{others}. A quantizer's name looks like {example!r}"]


def weightless_problems(
    layers: Sequence[LayerSetting], rules: Sequence[Rule], reasons: Mapping[str, str]
) -> list[str]:
    """Return an error if the config asks for quantized weights and turns on other quantizers alone.

    Args:
        layers: The layers that can be quantized.
        rules: The config.
        reasons: Why other layers, by name, cannot be quantized.
    """
    asking = [rule for i, rule in enumerate(rules) if _asks_for_weights(rule, rules[i + 1 :])]
    on = [layer for layer in layers if layer.is_quantized]
    if not on or not asking or any(layer.quantizers.keys() & layer.site.weight_quantizers() for layer in on):
        return []
    off = [layer.site.name for layer in layers if layer.has_weight]
    if not off and not reasons:
        return []  # a model of norms and poolings alone
    left = f". Layers whose weights the config leaves out: {listed(off)}" if off else ""
    return [
        f"entry {asking[0]} asks for quantized weights and no weight would be quantized, only other tensors of "
        f"{len(on)} layers{_describe_reasons(reasons)}{left}. Leave that entry out if this is meant"
    ]


def _asks_for_weights(rule: Rule, later: Iterable[Rule]) -> bool:
    """Whether the rule turns weights on, and no later one takes all of it back."""
    return (
        "weight_quantizer" in rule.pattern
        and not rule.turns_off
        and not any(
            r.turns_off and r.parent_class is None and fnmatchcase(rule.pattern, r.pattern) for r in later
        )
    )


def _describe_reasons(reasons: Mapping[str, str]) -> str:
    counts = [f"{count} x {reason}" for reason, count in Counter(reasons.values()).items()]
    return f". Layers that cannot be quantized: {'; '.join(counts)}" if counts else ""


def _nearest_name(typed: str, names: Sequence[str]) -> str:
    """Compare with whole names, then with every part of them that has as many components."""
    if hint := nearest(typed, names):
        return hint
    length = typed.count(".") + 1
    split = [name.split(".") for name in names]
    parts = {".".join(words[i : i + length]) for words in split for i in range(len(words) - length + 1)}
    return nearest(typed, parts)
