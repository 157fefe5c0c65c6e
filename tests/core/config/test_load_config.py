"""From what a user passes to a config: names, dicts, defaults, unknown keys; nothing of the caller's changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import octavo
from helpers.config_rules import FP8, INT4_BLOCK, OFF, entry, weights
from octavo.core.config import load_config, merge_configs, preset, with_block_size
from octavo.core.errors import ConfigError


def test_a_name_or_a_dict() -> None:
    config = {"quant_cfg": [OFF], "algorithm": None}

    assert load_config("FP8_DEFAULT_CFG") == preset("FP8_DEFAULT_CFG")
    assert load_config(config) == config
    assert load_config({**config, "effective_bits": 4.5}) == config


def test_the_algorithm_is_max_when_left_out_and_none_when_none() -> None:
    assert load_config({"quant_cfg": [OFF]})["algorithm"] == "max"
    assert load_config({"quant_cfg": [OFF], "algorithm": None})["algorithm"] is None
    assert load_config({"quant_cfg": [OFF], "algorithm": {"method": "max"}})["algorithm"] == {"method": "max"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config must be a preset's name or a dict, found NoneType"),
        ([OFF], "config must be a preset's name or a dict, found list"),
        (Path("recipe.yaml"), "config must be a preset's name or a dict, found PosixPath"),
        ({}, "config has no 'quant_cfg', found keys []"),
        ({"algorithm": "max"}, "config has no 'quant_cfg', found keys ['algorithm']"),
        ({"quant_config": [OFF]}, "config: unknown key 'quant_config'; known: quant_cfg, algorithm, effective_bits."),
        ({"quant_cfg": [OFF], "algoritm": "max"}, "unknown key 'algoritm'"),
        ("INT8_DEFAULT", "unknown preset 'INT8_DEFAULT'; `octavo presets` lists all. Did you mean 'INT8_DEFAULT_CFG'?"),
    ],
)  # fmt: skip
def test_refusals(config: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config)

    assert message in str(caught.value)


def test_the_nearest_key_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'algoritm'.*Did you mean 'algorithm'\?"):
        octavo.plan(nn.Linear(2, 2), {"quant_cfg": [OFF], "algoritm": "max"})


LIST = {"quant_cfg": [OFF, entry("*weight_quantizer", [INT4_BLOCK, FP8])], "algorithm": {"method": "max"}}
DICT = {"quant_cfg": {"*weight_quantizer": {"num_bits": 8}, "default": {"enable": False}}, "algorithm": "max"}


@pytest.mark.parametrize("config", [LIST, DICT], ids=["list", "dict"])
def test_the_callers_dicts_are_never_modified(config: dict[str, Any]) -> None:
    mine, before = copy.deepcopy(config), copy.deepcopy(config)

    loaded = load_config(mine)
    octavo.plan(nn.Sequential(nn.Linear(128, 16)), mine)
    if isinstance(mine["quant_cfg"], list):
        with_block_size(mine, 32)["quant_cfg"].append("changed")
        merge_configs(mine, octavo.FP8_KV_CFG, mine)["quant_cfg"][1].clear()
    loaded["quant_cfg"].clear()

    assert mine == before
    assert octavo.preset("FP8_KV_CFG") == octavo.FP8_KV_CFG


def test_quantizing_modifies_neither_the_config_nor_a_preset() -> None:
    config = weights({"num_bits": 4, "block_sizes": {-1: 16}})
    before, preset_before = copy.deepcopy(config), copy.deepcopy(octavo.INT8_WEIGHT_ONLY_CFG)
    octavo.quantize(nn.Sequential(nn.Linear(16, 16)), config, quiet=True)
    octavo.quantize(nn.Sequential(nn.Linear(16, 16)), octavo.INT8_WEIGHT_ONLY_CFG, quiet=True)

    assert config == before
    assert preset_before == octavo.INT8_WEIGHT_ONLY_CFG
