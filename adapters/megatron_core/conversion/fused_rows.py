"""What the rows of Megatron-core's fused layers are, on one rank."""

from __future__ import annotations

from typing import Any

from octavo.core.model.segments import RowSegments


def fused_rows(name: str, layer: Any) -> RowSegments | None:
    """Return the segments of the rows that a rank has of a fused layer, or None where its rows are one tensor's.

    `linear_qkv` holds the queries, keys and values of one query group after the other; a gated `linear_fc1` the
    rank's rows of `mlp.gate`, then those of `mlp.up`. Experts are not divided: checkpoints give gate and up of one
    expert a common scale.

    Args:
        name: Name of the layer in its model.
        layer: The layer, a column-parallel one.
    """
    own, config = name.rpartition(".")[2], layer.config
    ranks = layer.tp_group.size() if layer.tp_group is not None else 1
    if own == "linear_qkv" and config.num_query_groups % ranks == 0:
        queries = config.kv_channels * (config.num_attention_heads // config.num_query_groups)
        rows = {"attention.q": queries, "attention.k": config.kv_channels, "attention.v": config.kv_channels}
        return RowSegments(rows, config.num_query_groups // ranks)
    if own == "linear_fc1" and config.gated_linear_unit and ".experts." not in name:
        half = layer.weight.shape[0] // 2
        return RowSegments({"mlp.gate": half, "mlp.up": half})
    return None
