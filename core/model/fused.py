"""Layers that serving engines join into one, with one scale for all where the scale is a tensor's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from octavo.core.model.description import ModelDescription

ATTENTION_ROLES, GATED_ROLES = ("attention.q", "attention.k", "attention.v"), ("mlp.gate", "mlp.up")
FUSED_ROLES = (ATTENTION_ROLES, GATED_ROLES)
# The same as checkpoints name them, where no model says what its layers are.
_ATTENTION_NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
QUERY_NAMES = tuple(names[0] for names in _ATTENTION_NAMES)
FUSED_NAMES = (
    *_ATTENTION_NAMES,
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.\d+\.(?P<own>\w+)")


def fused_groups(
    description: ModelDescription | None, fused_roles: Sequence[Sequence[str]] = FUSED_ROLES
) -> list[tuple[str, ...]]:
    """Return the groups of layers, by module name, that engines join; empty without a family map."""
    blocks = description.blocks if description is not None else ()
    groups = (
        tuple(block.roles[role] for role in roles if role in block.roles)
        for block in blocks
        for roles in fused_roles
    )
    return [group for group in groups if len(group) > 1]


def fused_names(description: ModelDescription | None) -> set[str]:
    """Return the layers that engines join, and those that the model itself holds as one."""
    segments = description.segments if description is not None else {}
    return {name for group in fused_groups(description) for name in group} | set(segments)


def joined_by_name(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of layers that engines join, by what such layers are called in checkpoints."""
    known = set(names)
    groups = []
    for name in sorted(known):
        parent, dot, own = name.rpartition(".")
        group = next((group for group in FUSED_NAMES if group[0] == own), ())
        members = tuple(member for last in group if (member := f"{parent}{dot}{last}") in known)
        if len(members) > 1:
            groups.append(members)
    return groups


def experts_by_name(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of layers that have one input in all experts, by what such layers are called in checkpoints."""
    first = {own: group[0] for group in FUSED_NAMES for own in group}
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        if expert := _EXPERT.fullmatch(name):
            found.setdefault((expert["experts"], first.get(expert["own"], expert["own"])), []).append(name)
    return list(map(tuple, found.values()))
