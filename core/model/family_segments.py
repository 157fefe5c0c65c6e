"""The row segments that a family map declares, counted from a model's hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from octavo.core.errors import ConfigError
from octavo.core.model.description import BlockDescription
from octavo.core.model.segments import RowSegments


def declared_segments(
    family: str,
    table: Mapping[str, Any],
    blocks: Iterable[BlockDescription],
    hyperparameters: Mapping[str, int],
    modules: Mapping[str, nn.Module] | None,
) -> dict[str, RowSegments]:
    """Return the segments of each fused layer, by module name.

    Args:
        family: The map's name.
        table: Role of a fused layer to its declaration: `rows`, each segment's role to the hyperparameters whose
            product is its number of rows; `groups`, the hyperparameter that says how many runs they are interleaved
            in, or nothing; `weight_dim`, as in `RowSegments`.
        blocks: The model's blocks.
        hyperparameters: Its sizes. `num_kv_heads` and `head_dim` default to what ungrouped attention has.
        modules: Its modules by name, whose rows are checked; None where only sizes are known.

    Raises:
        ConfigError: a size is unknown, rows do not divide into the groups, or add up to another number than the
            layer's.
    """
    sizes = _with_defaults(hyperparameters)
    declared = {role: _row_segments(family, role, entry, sizes) for role, entry in table.items()}
    found = {
        block.roles[role]: segments
        for block in blocks
        for role, segments in declared.items()
        if role in block.roles
    }
    for name, segments in found.items():
        if modules is not None:
            _check_rows(family, name, segments, modules[name])
    return found


def _with_defaults(sizes: Mapping[str, int]) -> dict[str, int]:
    defaults: dict[str, int] = {}
    if "num_heads" in sizes:
        defaults["num_kv_heads"] = sizes["num_heads"]
        if "hidden_size" in sizes:
            defaults["head_dim"] = sizes["hidden_size"] // sizes["num_heads"]
    return {**defaults, **sizes}


def _row_segments(family: str, role: str, entry: Mapping[str, Any], sizes: Mapping[str, int]) -> RowSegments:
    groups = _size([entry["groups"]], family, role, sizes) if "groups" in entry else 1
    rows = {segment: _size(factors, family, role, sizes) for segment, factors in entry["rows"].items()}
    uneven = {segment: count for segment, count in rows.items() if count % groups}
    if uneven:
        raise ConfigError(
            f"the family map {family!r} says that segments of {role} are interleaved in {groups} groups "
            f"({entry['groups']}), and the rows {uneven} do not divide by {groups}: correct `groups` or `rows`"
        )
    in_group = {segment: count // groups for segment, count in rows.items()}
    return RowSegments(in_group, groups, entry.get("weight_dim", 0))


def _size(factors: Sequence[str], family: str, role: str, sizes: Mapping[str, int]) -> int:
    unknown = [name for name in factors if name not in sizes]
    if unknown:
        raise ConfigError(
            f"the family map {family!r} counts the segments of {role} in {', '.join(unknown)}, which the model's "
            f"config does not give; it gives {', '.join(sorted(sizes))}: add it to the map's `hyperparameters`"
        )
    return prod(sizes[name] for name in factors)


def _check_rows(family: str, name: str, segments: RowSegments, layer: nn.Module) -> None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[segments.weight_dim] == segments.total_rows:
        return
    parts = ", ".join(f"{role} {segments.num_rows(role)}" for role in segments.rows_per_group)
    raise ConfigError(
        f"the family map {family!r} divides {name} into {segments.total_rows} rows ({parts}), and its weight "
        f"{list(weight.shape)} has {weight.shape[segments.weight_dim]}: correct the map's `segments`"
    )
