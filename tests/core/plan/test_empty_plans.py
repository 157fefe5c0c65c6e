"""Configs that would quantize nothing are refused, with the likely reason and the name of a quantizer."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo
from helpers.config_rules import OFF, entry
from helpers.plan_models import planned, shared_model
from octavo.core.errors import PlanError
from octavo.core.plan import Plan

EXAMPLE = "A quantizer's name looks like '0.input_quantizer'"


def linears() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16))


def only_error(plan: Plan) -> str:
    (error,) = plan.errors
    with pytest.raises(PlanError, match="1 problem"):
        plan.check()
    assert plan.coverage == 0
    return error


@pytest.mark.parametrize(
    "quant_cfg",
    [[], [OFF], [entry("*weight_quantizer", {"num_bits": 8}), OFF], {"default": {"enable": False}}],
    ids=str,
)
def test_everything_off(quant_cfg: Any) -> None:
    assert only_error(planned({"quant_cfg": quant_cfg}, linears())) == (
        f"the config turns on no quantizer: every entry that matches leaves its quantizers off. {EXAMPLE}"
    )


def test_globs_that_match_nothing_are_the_likely_reason() -> None:
    config = {"quant_cfg": [OFF, entry("*wieght_quantizer", {"num_bits": 8})]}
    error = only_error(planned(config, linears()))

    assert error.startswith(
        "the config turns on no quantizer: entry '*wieght_quantizer' matches no quantizer of this"
    )
    assert "Did you mean '0.weight_quantizer'?" in error
    assert error.endswith(EXAMPLE)


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.RMSNorm(8)], ids=str)
def test_models_without_a_layer_that_can_be_quantized(model: nn.Module) -> None:
    assert only_error(planned("INT8_DEFAULT_CFG", model)) == "the model has no layer that can be quantized"


def test_models_whose_layers_no_quantized_class_stands_for() -> None:
    assert only_error(planned("INT8_DEFAULT_CFG", nn.Sequential(nn.EmbeddingBag(8, 8)))) == (
        "the model has no layer that can be quantized. "
        "Layers that cannot be quantized: 1 x no quantized class for EmbeddingBag"
    )


def test_weights_that_were_asked_for_and_none_quantized() -> None:
    """Only the norm's input could be."""
    error = only_error(planned("FP8_DEFAULT_CFG", nn.Sequential(nn.EmbeddingBag(8, 8), nn.LayerNorm(8))))

    assert error == (
        "entry '*weight_quantizer' asks for quantized weights and no weight would be quantized, only other tensors of "
        "1 layers. Layers that cannot be quantized: 1 x no quantized class for EmbeddingBag. Leave that entry out if "
        "this is meant"
    )


def test_a_glob_for_weights_that_matches_none() -> None:
    entries = [entry("*wrong.weight_quantizer", {"num_bits": 8}), entry("*input_quantizer", {"num_bits": 8})]
    error = only_error(planned({"quant_cfg": entries}, linears()))

    assert error.startswith("entry '*wrong.weight_quantizer' asks for quantized weights")
    assert "Layers whose weights the config leaves out: 0" in error


@pytest.mark.parametrize("off", [OFF, entry("*weight_quantizer", enable=False)], ids=str)
def test_weights_that_are_turned_off_again(off: Any) -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", {"quant_cfg": [off]}, "FP8_KV_CFG")

    assert planned(config).errors == ()


def test_quantize_refuses() -> None:
    with pytest.raises(
        PlanError, match=r"the plan has 1 problem.*nothing was changed:\n  the model has no layer that"
    ):
        octavo.quantize(nn.Sequential(nn.ReLU()), "INT8_DEFAULT_CFG", quiet=True)


def test_a_model_without_parameters_has_a_share_of_zero() -> None:
    plan = planned("INT8_DEFAULT_CFG", nn.Sequential(nn.ReLU()))

    assert (plan.tensors, plan.coverage, plan.bytes_before, plan.bytes_after) == ((), 0.0, 0, 0)


def test_a_preset_for_parts_that_this_model_does_not_have() -> None:
    assert "experts" in only_error(planned("NVFP4_EXPERTS_ONLY_CFG"))


def test_experts_that_are_not_covered() -> None:
    model = shared_model("jetmoe")
    plan = planned("FP8_DEFAULT_CFG", model)

    assert plan.coverage < 0.1
    (error,) = plan.errors
    assert error.startswith(
        "8 weights of experts would stay as they are, since no quantized class stands for their"
    )
    assert "model.layers.0.mlp.input_linear.weight, model.layers.0.mlp.output_linear.weight" in error
    assert "Leave them out on purpose ({'quantizer_name': '*.input_linear.*', 'enable': False}, " in error


@pytest.mark.parametrize(
    "config",
    [
        octavo.merge_configs("FP8_DEFAULT_CFG", {"quant_cfg": [entry("*.experts.*", enable=False)]}),
        {"quant_cfg": [OFF, entry("*self_attn*weight_quantizer", {"num_bits": 8})]},
    ],
    ids=["turned off", "never meant"],
)
def test_experts_that_are_left_out_on_purpose(config: Any) -> None:
    assert planned(config, shared_model("qwen3_moe")).errors == ()
