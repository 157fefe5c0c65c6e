"""Joining configs: lists in order, the first algorithm that is not None."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from helpers.config_rules import OFF, decided, entry
from octavo.core.config import merge_configs, preset
from octavo.core.errors import ConfigError

KEY = "model.layers.0.self_attn.k_bmm_quantizer"


def with_algorithm(algorithm: Any) -> dict[str, Any]:
    return {"quant_cfg": [OFF], "algorithm": algorithm}


def test_entries_follow_each_other() -> None:
    merged = merge_configs(
        "NVFP4_DEFAULT_CFG", octavo.FP8_KV_CFG, {"quant_cfg": [entry("*k_bmm*", enable=False)]}
    )
    parts = [preset("NVFP4_DEFAULT_CFG"), preset("FP8_KV_CFG")]

    assert merged["quant_cfg"] == [
        *(e for part in parts for e in part["quant_cfg"]),
        entry("*k_bmm*", enable=False),
    ]
    assert merged["algorithm"] == "max"
    assert decided(merged["quant_cfg"], KEY) == [{"num_bits": (4, 3), "enable": False}]


@pytest.mark.parametrize(
    ("algorithms", "expected"),
    [
        (["max", None], "max"),
        ([None, "max"], "max"),
        ([None, None], None),
        (["awq_lite", "max"], "awq_lite"),
        ([None, {"method": "max"}, "awq_lite"], {"method": "max"}),
        ([None, []], []),
    ],
)
def test_the_first_algorithm_that_is_not_none(algorithms: list[Any], expected: Any) -> None:
    first, *others = map(with_algorithm, algorithms)

    assert merge_configs(first, *others)["algorithm"] == expected


def test_one_config_alone_may_be_of_either_form() -> None:
    older = {"quant_cfg": {"default": {"enable": False}}, "algorithm": "max"}

    assert merge_configs(older) == older
    assert merge_configs("FP8_KV_CFG") == preset("FP8_KV_CFG")


@pytest.mark.parametrize("position", [0, 1])
def test_the_older_form_cannot_be_joined(position: int) -> None:
    configs: list[Any] = [octavo.FP8_KV_CFG]
    configs.insert(position, {"quant_cfg": {"default": {"enable": False}}})

    with pytest.raises(
        ConfigError, match="only configs whose quant_cfg is an ordered list of entries can be joined"
    ):
        merge_configs(*configs)
