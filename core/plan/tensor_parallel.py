"""Tensor parallelism: what each rank holds of a layer, and where its cut would go through a head or a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from octavo.core.model.description import ModelDescription
from octavo.core.model.segments import RowSegments
from octavo.core.plan.checks import block_sizes
from octavo.core.plan.settings import LayerSetting

_KV_ROLES = ("attention.k", "attention.v")


def tensor_parallel_problems(
    layers: Sequence[LayerSetting], description: ModelDescription | None, tp: int
) -> Iterator[str]:
    """Yield an error for each layer, or segment of a fused one, that `tp` ranks cannot share in whole blocks."""
    if tp == 1:
        return
    if description is None:
        yield f"tp={tp} cannot be checked: no family map says how this model is split"
        return
    yield from _head_problems(description, tp)
    for layer in layers:
        name, stages = layer.site.name, layer.quantizers.get("weight_quantizer", ())
        shape = layer.site.quantized.quantizer_shape(layer.site.layer, "weight_quantizer")
        is_row = name in description.row_parallel
        if not stages or not shape or not (is_row or name in description.column_parallel):
            continue
        axis = -1 if is_row else -2
        length = max([1, *(dict(block_sizes(stage.spec)).get(axis, 1) for stage in stages)])
        if name in description.segments and not is_row:
            problems = _segment_problems(description.segments[name], length, description, tp)
        else:
            problems = _whole_problems(name, shape[axis], is_row, length, description, tp)
        yield from (f"{name}: {problem}" for problem in problems)


def rank_rows(name: str, rows: int, description: ModelDescription, tp: int) -> tuple[int, ...]:
    """Return how many rows one of `tp` ranks holds of a column-parallel layer: of its `rows`, or each segment's."""
    segments = description.segments.get(name)
    if segments is None:
        return (rows // _layer_parts(name, description, tp),)
    roles = segments.rows_per_group
    return tuple(segments.num_rows(role) // _role_parts(role, description, tp) for role in roles)


def _whole_problems(
    name: str, size: int, is_row: bool, length: int, description: ModelDescription, tp: int
) -> Iterator[str]:
    parts = _layer_parts(name, description, tp)
    if size % (parts * length):
        dim = "in_features" if is_row else "out_features"
        yield f"{dim} {size} cannot be split over {_split(parts, tp)} in whole blocks of {length}"


def _segment_problems(
    segments: RowSegments, length: int, description: ModelDescription, tp: int
) -> Iterator[str]:
    """Yield a problem for each segment that does not divide, or whose runs of adjacent rows cut a block.

    Where every run is whole blocks, each also starts on a block, as only runs lie before it.
    """
    for role, in_group in segments.rows_per_group.items():
        rows, parts = segments.num_rows(role), _role_parts(role, description, tp)
        run = min(in_group, rows // parts)
        if rows % parts or run % length:
            adjacent = f" (a rank's lie {run} together)" if length > 1 else ""
            yield (
                f"the {rows} rows of {role}, of {segments.total_rows} in all, cannot be split over "
                f"{_split(parts, tp)} in whole blocks of {length}{adjacent}"
            )


def _layer_parts(name: str, description: ModelDescription, tp: int) -> int:
    roles = (role for block in description.blocks for role in _KV_ROLES if block.roles.get(role) == name)
    return _role_parts(next(roles, ""), description, tp)


def _role_parts(role: str, description: ModelDescription, tp: int) -> int:
    """Return into how many parts `tp` ranks split a role's rows: fewer where there are fewer key/value heads."""
    return min(tp, description.hyperparameters.get("num_kv_heads", tp)) if role in _KV_ROLES else tp


def _split(parts: int, tp: int) -> str:
    return f"tp={tp}" if parts == tp else f"{parts} key/value heads, which tp={tp} replicates,"


def _head_problems(description: ModelDescription, tp: int) -> Iterator[str]:
    heads = description.hyperparameters.get("num_heads", tp)
    kv_heads = description.hyperparameters.get("num_kv_heads", heads)
    if heads % tp:
        yield f"{heads} attention heads cannot be split over tp={tp}"
    if kv_heads % tp and tp % kv_heads:
        yield f"{kv_heads} key/value heads can be neither split over nor replicated to tp={tp}"
