"""The 39 presets of ModelOpt, and ours: there by name, plain, and nobody's copy is anybody else's."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

import octavo
from octavo.core.config import kv_preset_names, preset, preset_names
from octavo.core.errors import ConfigError

# ../shared/specs/modelopt.md, 1.1
NAMES = [
    "INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG", "INT8_WEIGHT_ONLY_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG", "FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "NVFP4_DEFAULT_CFG", "W4A16_NVFP4_CFG", "NVFP4_AWQ_LITE_CFG",
    "NVFP4_AWQ_CLIP_CFG", "NVFP4_AWQ_FULL_CFG", "NVFP4_SVDQUANT_DEFAULT_CFG",
    "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG", "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG", "NVFP4_FOUR_OVER_SIX_CFG",
    "NVFP4_MLP_ONLY_CFG", "NVFP4_EXPERTS_ONLY_CFG", "NVFP4_OMLP_ONLY_CFG", "NVFP4_MLP_WEIGHT_ONLY_CFG",
    "W4A8_NVFP4_FP8_CFG", "MXFP8_DEFAULT_CFG", "MXFP6_DEFAULT_CFG", "MXFP4_DEFAULT_CFG", "MXINT8_DEFAULT_CFG",
    "MXFP4_MLP_WEIGHT_ONLY_CFG", "W4A8_MXFP4_FP8_CFG", "MAMBA_MOE_FP8_AGGRESSIVE_CFG",
    "MAMBA_MOE_FP8_CONSERVATIVE_CFG", "MAMBA_MOE_NVFP4_AGGRESSIVE_CFG", "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG",
    "NVFP4_FP8_MHA_CONFIG",
]  # fmt: skip
KV_NAMES = [
    "FP8_KV_CFG", "NVFP4_KV_CFG", "FP8_AFFINE_KV_CFG", "NVFP4_AFFINE_KV_CFG", "NVFP4_KV_ROTATE_CFG",
]  # fmt: skip

OWN_NAMES = [
    "OCTAVO_INT8_CFG", "OCTAVO_FP8_CFG", "OCTAVO_NVFP4_CFG",
    "OCTAVO_INT4_CFG", "OCTAVO_INT3_CFG", "OCTAVO_NVFP4_W4A16_CFG", "OCTAVO_MXFP4_W4A16_CFG",
]  # fmt: skip


def parts(value: Any) -> Iterator[Any]:
    """Yield every dict and list inside a value, itself included."""
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from parts(inner)


def test_all_names_are_there() -> None:
    assert len({*NAMES, *KV_NAMES}) == 39
    assert sorted(preset_names()) == sorted([*NAMES, *OWN_NAMES, *KV_NAMES])
    assert sorted(kv_preset_names()) == sorted(KV_NAMES)


@pytest.mark.parametrize("name", [*NAMES, *OWN_NAMES, *KV_NAMES])
def test_each_is_a_plain_dict_on_the_package(name: str) -> None:
    config = getattr(octavo, name)

    assert config == preset(name)
    assert list(config) == ["quant_cfg", "algorithm"]
    assert {type(part) for part in parts(config)} <= {dict, list}
    assert copy.deepcopy(config) == config
    assert json.dumps(config)


def test_changing_a_copy_changes_no_other() -> None:
    before = preset("NVFP4_DEFAULT_CFG")
    mine = preset("NVFP4_DEFAULT_CFG")
    for part in parts(mine):
        part.clear()

    assert mine == {}
    assert preset("NVFP4_DEFAULT_CFG") == before


@pytest.mark.parametrize("name", [*NAMES, *KV_NAMES])
def test_entries_of_one_preset_share_nothing(name: str) -> None:
    """A user who edits the weights' attributes must not edit the inputs' with them."""
    ids = [id(part) for part in parts(preset(name))]

    assert len(ids) == len(set(ids))


def test_an_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown preset 'FP8_DEFUALT_CFG'.*Did you mean 'FP8_DEFAULT_CFG'\?"
    ):
        preset("FP8_DEFUALT_CFG")
    with pytest.raises(ConfigError, match=r"unknown preset 'NVFP4_KV'.*Did you mean 'NVFP4_KV_CFG'\?"):
        preset("NVFP4_KV")


def test_a_misspelt_attribute_offers_the_nearest() -> None:
    with pytest.raises(AttributeError, match="FP8_DEFAULT_CFG"):
        octavo.FP8_DEFUALT_CFG  # noqa: B018
