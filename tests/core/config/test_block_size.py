"""Changing block lengths: of integer formats only, in every stage that has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

import octavo
from helpers.config_rules import INT4_BLOCK, WEIGHT, decided, entry, weights
from octavo.core.config import preset, preset_names, with_block_size
from octavo.core.errors import ConfigError

INT4 = "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"


def test_a_preset_by_name_and_as_a_dict() -> None:
    changed = with_block_size(INT4, 32)

    assert changed == with_block_size(octavo.preset(INT4), 32)
    assert decided(changed["quant_cfg"]) == [{"num_bits": 4, "block_sizes": {-1: 32, "type": "static"}}]
    assert changed["algorithm"] == "max"
    assert [e for e in changed["quant_cfg"] if e not in preset(INT4)["quant_cfg"]] == [
        changed["quant_cfg"][1]
    ]


def test_only_the_stage_with_integer_blocks_changes() -> None:
    assert decided(with_block_size("W4A8_AWQ_BETA_CFG", 64)["quant_cfg"]) == [
        {"num_bits": 4, "block_sizes": {-1: 64, "type": "static"}},
        {"num_bits": (4, 3)},
    ]


def test_blocks_along_other_dims_and_float_blocks_stay() -> None:
    square = {"num_bits": 8, "block_sizes": {-1: 128, -2: 64}}
    fp8 = {"num_bits": (4, 3), "block_sizes": {-1: 128}}
    changed = with_block_size(weights(square, entry("*input_quantizer", fp8)), 32)["quant_cfg"]

    assert decided(changed) == [{"block_sizes": {-1: 32, -2: 64}}]
    assert decided(changed, WEIGHT.replace("weight", "input")) == [fp8]


def without_integer_blocks() -> list[str]:
    with_blocks = (INT4, "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG", "OCTAVO_INT4_CFG", "OCTAVO_INT3_CFG")
    return [name for name in preset_names() if name not in with_blocks]


@pytest.mark.parametrize("name", without_integer_blocks())
def test_formats_that_define_their_blocks_refuse(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"block size 64 was asked for.*no integer format with blocks.*NVFP4 and MX"
    ):
        with_block_size(name, 64)


@pytest.mark.parametrize("size", [0, -1])
def test_lengths_are_positive(size: int) -> None:
    with pytest.raises(ConfigError, match=f"block size {size}: must be at least 1"):
        with_block_size(INT4, size)


INT8_TOKEN = {"num_bits": 8, "type": "dynamic", "block_sizes": {-1: None}}


def test_scales_per_token_stay() -> None:
    changed = with_block_size(weights(INT4_BLOCK, entry("*input_quantizer", INT8_TOKEN)), 32)["quant_cfg"]

    assert changed[2]["cfg"] == INT8_TOKEN


ON = {**INT4_BLOCK, "enable": True}
OTHER_SPELLINGS: dict[str, dict[str, Any]] = {
    "after JSON": json.loads(json.dumps(weights(INT4_BLOCK))),
    "num_bits as a name": weights({"num_bits": "int4", "block_sizes": {-1: 128}}),
    "the older dict": {"quant_cfg": {"default": {"enable": False}, "*weight_quantizer": ON}},
    "entries of one key": {"quant_cfg": [{"*": {"enable": False}}, {"*weight_quantizer": ON}]},
}


@pytest.mark.parametrize("config", OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS.keys())
def test_every_spelling_of_an_integer_format(config: dict[str, Any]) -> None:
    (stage,) = decided(with_block_size(config, 32)["quant_cfg"])

    assert stage["block_sizes"][-1] == 32


def test_lengths_are_integers() -> None:
    with pytest.raises(ConfigError, match=r"32\.5"):
        with_block_size(INT4, 32.5)  # type: ignore[arg-type]
