"""Segments that a family map declares wrongly are refused with both numbers."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from octavo.core.errors import ConfigError
from octavo.core.model.description import BlockDescription
from octavo.core.model.family_segments import declared_segments

SIZES = {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}
ROWS = {
    "attention.q": ["num_heads", "head_dim"],
    "attention.k": ["num_kv_heads", "head_dim"],
    "attention.v": ["num_kv_heads", "head_dim"],
}


def declared(entry: dict[str, Any], sizes: dict[str, int] = SIZES) -> tuple[dict[str, int], int]:
    blocks = [BlockDescription("h.0", "attention", {"attention.qkv": "h.0.qkv"})]
    segments = declared_segments(
        "mine", {"attention.qkv": entry}, blocks, sizes, {"h.0.qkv": nn.Linear(32, 64)}
    )
    return dict(segments["h.0.qkv"].rows_per_group), segments["h.0.qkv"].groups


def test_the_dim_of_a_head_follows_from_the_width() -> None:
    assert declared({"rows": ROWS}) == ({"attention.q": 32, "attention.k": 16, "attention.v": 16}, 1)
    assert declared({"rows": ROWS, "groups": "num_kv_heads"}) == (
        {"attention.q": 16, "attention.k": 8, "attention.v": 8},
        2,
    )


def test_rows_that_add_up_to_another_number() -> None:
    message = (
        r"^the family map 'mine' divides h\.0\.qkv into 96 rows \(attention.q 32, attention.k 32, attention.v 32\), "
        r"and its weight \[64, 32\] has 64: correct"
    )
    with pytest.raises(ConfigError, match=message):
        declared({"rows": ROWS}, {"hidden_size": 32, "num_heads": 4})


def test_rows_that_do_not_divide_into_groups() -> None:
    with pytest.raises(
        ConfigError, match=r"in 3 groups \(num_kv_heads\), and the rows .*32.* do not divide by 3"
    ):
        declared({"rows": ROWS, "groups": "num_kv_heads"}, {**SIZES, "num_kv_heads": 3})


def test_a_size_that_the_config_does_not_give() -> None:
    with pytest.raises(
        ConfigError, match=r"of attention\.qkv in num_queries, which .* it gives head_dim, hidden_size"
    ):
        declared({"rows": {**ROWS, "attention.q": ["num_queries", "head_dim"]}})
