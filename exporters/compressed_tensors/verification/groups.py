"""The groups of a checkpoint's `quantization_config`, and which modules are in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.model.exporter import LayerFormat, Verdict
from octavo.core.verification.finding import Finding, error, warning
from octavo.exporters.compressed_tensors.formats import formats_for
from octavo.exporters.compressed_tensors.strategies import spec_from_arguments

_ANY_LINEAR = "Linear"
_PLACE = "config.json: quantization_config"


@dataclass(frozen=True)
class Group:
    """One entry of `config_groups`.

    Attributes:
        name: Its name.
        targets: Names of modules, `re:` patterns, or names of classes.
        weights: The arguments of weights.
        inputs: The arguments of inputs, or None.
        format: The name of its format.
    """

    name: str
    targets: Sequence[str]
    weights: Mapping[str, Any]
    inputs: Mapping[str, Any] | None
    format: str

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{_PLACE}.config_groups.{self.name}"

    @property
    def length(self) -> int | None:
        """The length of its blocks along the inputs, or None."""
        length = self.weights.get("group_size")
        return length if isinstance(length, int) and length > 0 else None

    @property
    def strategy(self) -> str:
        """How its weights' scales lie; `mx` for blocks with E8M0 scales."""
        if str(self.weights.get("scale_dtype")) == "torch.uint8" or self.format.startswith("mx"):
            return "mx"
        return str(self.weights.get("strategy") or ("group" if self.length else "tensor"))


def read_groups(config: Mapping[str, Any]) -> list[Group]:
    """Return the groups of a `quantization_config`.

    Raises:
        CheckpointError: there are none, or one does not say how weights are quantized.
    """
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{_PLACE}.config_groups must hold at least one group, found {groups!r}")
    found = []
    for name, group in groups.items():
        if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
            raise CheckpointError(
                f"{_PLACE}.config_groups.{name} must say how weights are quantized, found {group!r}"
            )
        format_name = group.get("format") or config.get("format")
        targets = group.get("targets") or []
        found.append(Group(name, targets, group["weights"], group.get("input_activations"), str(format_name)))
    return found


def group_of(module: str, is_linear: bool, groups: Sequence[Group]) -> Group | None:
    """Return the group of a module: by its name first, then by its class."""
    named = [group for group in groups if matches(module, group.targets)]
    by_class = [group for group in groups if is_linear and _ANY_LINEAR in group.targets]
    return next(iter([*named, *by_class]), None)


def matches(module: str, patterns: Sequence[str]) -> str:
    """Return the pattern that names a module, exactly or as `re:…`, or an empty string."""
    for pattern in patterns:
        if module == pattern or (pattern.startswith("re:") and re.match(pattern[3:], module)):
            return pattern
    return ""


def check_group(
    group: Group, consumer: str, keys: Sequence[str], known_formats: Sequence[str]
) -> Iterator[Finding]:
    """Yield what the reader does not know of a group."""
    for field, arguments in (("weights", group.weights), ("input_activations", group.inputs or {})):
        if unknown := sorted(set(arguments) - set(keys)):
            yield error(f"{group.place}.{field}", f"keys {unknown}", "known ones only", "Remove them.")
    if group.format not in known_formats:
        yield error(
            f"{group.place}.format", repr(group.format), f"one of {', '.join(known_formats)}", "Mend it."
        )
        return
    yield from _finding(group, consumer, _verdict(group, consumer, is_expert=False), "a format it loads")


def check_experts(group: Group, consumer: str) -> Iterator[Finding]:
    """Yield that the reader has no form for experts of a group, where that differs from other layers."""
    verdict = _verdict(group, consumer, is_expert=True)
    if verdict != _verdict(group, consumer, is_expert=False):
        yield from _finding(group, consumer, verdict, "a format in which it loads experts")


def _finding(group: Group, consumer: str, verdict: Verdict, needed: str) -> Iterator[Finding]:
    if verdict.status == "loads":
        return
    finding = error if verdict.status == "refused" else warning
    advice = (
        f"Write it in a form that this reader knows: `octavo convert SRC DST --target {consumer}`."
        if verdict.status == "refused"
        else "Try it before you rely on it."
    )
    expected = f"{needed} ({consumer}: {verdict.status}; {verdict.evidence})"
    yield finding(f"{group.place}.format", repr(group.format), expected, advice)


def _verdict(group: Group, consumer: str, is_expert: bool) -> Verdict:
    try:
        weight = spec_from_arguments(group.weights, group.place)
        inputs = spec_from_arguments(group.inputs, group.place) if group.inputs else None
    except CheckpointError as unread:
        return Verdict("unknown", str(unread))
    asymmetric = not group.weights.get("symmetric", True)
    found = formats_for(LayerFormat(weight, inputs, zero_points=asymmetric))
    if not found:
        return Verdict("unknown", f"weights {weight} with inputs {inputs} were never tried there")
    known = next((one for one in found if one.name == group.format), None)
    if known is None:
        return Verdict("refused", f"its arguments are those of {found[0].name}")
    if is_expert and consumer in known.experts:
        return known.experts[consumer]
    return known.targets.get(consumer, Verdict("unknown", f"{known.name} was never tried there"))
