"""Entries that match no quantizer are warnings that offer the nearest name; those of presets are no surprise."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo
from helpers.config_rules import entry, weights
from helpers.plan_models import planned
from octavo.core.config import kv_preset_names, preset_names

INT8 = {"num_bits": 8}


def warnings(*more: dict[str, Any], model: nn.Module | None = None) -> tuple[str, ...]:
    plan = planned(weights(INT8, *more), model)
    assert plan.errors == ()
    return plan.warnings


def test_a_glob() -> None:
    assert warnings(entry("*down_prj.weight_quantizer", enable=False))[0].startswith(
        "entry '*down_prj.weight_quantizer' matches no quantizer of this model."
    )


def test_the_nearest_name() -> None:
    pattern = "model.layers.0.mlp.dwn_proj.weight_quantizer"

    assert warnings(entry(pattern, enable=False)) == (
        f"entry '{pattern}' matches no quantizer of this model. "
        "Did you mean 'model.layers.0.mlp.down_proj.weight_quantizer'?",
    )


@pytest.mark.parametrize("cfg", [{"enable": False}, {"cfg": INT8}], ids=str)
def test_a_class(cfg: dict[str, Any]) -> None:
    assert warnings({"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linaer", **cfg}) == (
        "entry '*weight_quantizer' in nn.Linaer matches no quantizer of this model. Did you mean 'nn.Linear'?",
    )


def test_a_glob_under_a_class_that_exists() -> None:
    assert warnings(entry("*k_bmm_quantizer", enable=False, parent_class="nn.Linear"))[0].startswith(
        "entry '*k_bmm_quantizer' in nn.Linear matches no quantizer of this model."
    )


def test_the_older_form() -> None:
    quant_cfg = {
        "default": {"enable": False},
        "*weight_quantizer": {"enable": True},
        "nn.Conv2d": {"*": {"num_bits": 4}},
    }
    quant_cfg["*qq_proj*"] = {"enable": False}
    plan = planned({"quant_cfg": quant_cfg})

    assert any(text.startswith("entry '*qq_proj*' matches no quantizer") for text in plan.warnings)


def test_matches_of_single_stages_count() -> None:
    stages = [INT8, {"num_bits": (4, 3)}]
    plan = planned(weights(stages, entry("*weight_quantizer.1", enable=False)))

    assert plan.warnings == ()


def test_entries_that_others_outdo_do_match() -> None:
    assert warnings(entry("*q_proj*", enable=False), entry("*q_proj.weight_quantizer", INT8)) == ()


# Four-over-six is an attribute that is not available yet.
RUNNABLE = [name for name in preset_names() if name not in {*kv_preset_names(), "NVFP4_FOUR_OVER_SIX_CFG"}]


@pytest.mark.parametrize("name", RUNNABLE)
def test_what_presets_carry_for_other_families_is_no_surprise(name: str) -> None:
    assert [text for text in planned(name).warnings if "matches no quantizer" in text] == []


def test_turning_on_what_presets_turn_off_is_a_surprise() -> None:
    assert warnings(entry("*router*", enable=False)) == ()
    assert warnings(entry("*router*", INT8))[0].startswith("entry '*router*' matches no quantizer")


def test_a_cache_preset_for_a_model_without_attention() -> None:
    plan = planned(octavo.merge_configs("INT8_DEFAULT_CFG", "FP8_KV_CFG"), nn.Sequential(nn.Linear(4, 4)))

    assert plan.warnings[0].startswith("entry '*[kv]_bmm_quantizer' matches no quantizer of this model.")


@pytest.mark.parametrize(
    ("typed", "meant"), [("*down_porj*", "down_proj"), ("*self_atn*", "self_attn"), ("*q_porj*", "q_proj")]
)
def test_the_nearest_name_of_a_short_glob(typed: str, meant: str) -> None:
    (warning,) = warnings(entry(typed, enable=False))

    assert meant in warning


@pytest.mark.parametrize("cfg", [{"enable": False}, {"cfg": INT8}], ids=str)
def test_a_misspelt_class_for_all_quantizers(cfg: dict[str, Any]) -> None:
    found = " ".join(warnings({"quantizer_name": "*", "parent_class": "nn.Linaer", **cfg}))

    assert "'*' in nn.Linaer" in found


def test_a_stage_of_a_quantizer_that_has_none() -> None:
    assert warnings(entry("*weight_quantizer.0", enable=False)) != ()
