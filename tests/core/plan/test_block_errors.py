"""Widths that a block does not divide: every offending layer, its width, the block, before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.config_rules import entry, weights
from helpers.plan_models import new_model, planned, shared_model
from octavo.core.config import with_block_size
from octavo.core.errors import PlanError

NVFP4 = "e2m1 block{-1:16} e4m3·global dynamic"


def linears(model: nn.Module) -> dict[str, int]:
    return {
        name: layer.in_features
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    }


def test_every_offending_quantizer_and_no_other() -> None:
    model = new_model(device="meta", intermediate_size=200)
    plan = planned("NVFP4_DEFAULT_CFG", model)
    wrong = [name for name, width in linears(model).items() if width % 16]

    assert wrong == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    assert sorted(plan.errors) == sorted(
        f"{name}.{quantizer}: last dim 200 is not divisible by the block of 16 of {NVFP4}"
        for name in wrong
        for quantizer in ("weight_quantizer", "input_quantizer")
    )


@pytest.mark.parametrize(
    ("config", "block"),
    [
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 128),
        (with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 96), 96),
        ("NVFP4_MLP_WEIGHT_ONLY_CFG", 32),
        ("MXFP8_DEFAULT_CFG", 32),
    ],
)
def test_the_block_is_that_of_the_config(config: Any, block: int) -> None:
    model = new_model(
        device="meta", hidden_size=16 * 9, num_attention_heads=9, num_key_value_heads=3, head_dim=16
    )
    wrong = {name: width for name, width in linears(model).items() if width % block}
    errors = planned(config, model).errors
    named = {error.partition(":")[0].rpartition(".")[0] for error in errors}

    assert named == {name for name in wrong if "MLP" not in str(config) or "mlp" in name}
    assert all(
        f"last dim 144 is not divisible by the block of {block}" in error or "last dim 256" in error
        for error in errors
    )


def test_each_stage_of_a_list_is_checked() -> None:
    stages = [{"num_bits": 8, "block_sizes": {-1: 8}}, {"num_bits": 4, "block_sizes": {-1: 12}}]

    assert planned(weights(stages), nn.Sequential(nn.Linear(32, 4))).errors == (
        "0.weight_quantizer: last dim 32 is not divisible by the block of 12 of int4 block{-1:12}",
    )


def test_keys_and_values_are_checked_by_their_head() -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "NVFP4_KV_CFG")
    errors = planned(config, new_model(device="meta", head_dim=24)).errors

    assert sorted(error.partition(":")[0] for error in errors) == [
        f"model.layers.{i}.self_attn.{letter}_bmm_quantizer" for i in (0, 1) for letter in "kv"
    ]
    assert all("last dim 24 is not divisible by the block of 16" in error for error in errors)


def test_padding_is_allowed_in_square_blocks_and_along_other_dims() -> None:
    model = nn.Sequential(nn.Linear(30, 10))
    for sizes in ({-1: 16, -2: 16}, {-2: 16}):
        assert planned(weights({"num_bits": 8, "block_sizes": sizes}), model).errors == ()
    off = entry("*weight_quantizer", {"num_bits": 8, "block_sizes": {-1: 16}}, enable=False)
    assert (
        planned(weights({"num_bits": 8}, off, entry("*output_quantizer", {"num_bits": 8})), model).errors
        == ()
    )


def test_quantize_names_them_all_before_any_work() -> None:
    model = nn.Sequential(*(nn.Linear(width, 24) for width in (24, 24, 32)))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(PlanError) as caught:
        octavo.quantize(model, weights({"num_bits": 4, "block_sizes": {-1: 16}}), quiet=True)

    assert str(caught.value) == (
        "the plan has 2 problem(s); nothing was changed:\n"
        "  0.weight_quantizer: last dim 24 is not divisible by the block of 16 of int4 block{-1:16}\n"
        "  1.weight_quantizer: last dim 24 is not divisible by the block of 16 of int4 block{-1:16}"
    )
    assert [type(layer) for layer in model] == [nn.Linear] * 3
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_many_are_counted() -> None:
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(30)))
    plan = planned(weights({"num_bits": 4, "block_sizes": {-1: 16}}), model)

    assert len(plan.errors) == 30
    with pytest.raises(PlanError, match="the plan has 30 problem"):
        plan.check()


def test_every_layer_is_named_in_the_error_too() -> None:
    model = new_model(device="meta", num_hidden_layers=12, hidden_size=120, head_dim=20)
    with pytest.raises(PlanError) as caught:
        planned("NVFP4_DEFAULT_CFG", model).check()

    missing = [name for name, width in linears(model).items() if width % 16 and name not in str(caught.value)]
    assert missing == []


def test_a_width_that_fits_is_no_error() -> None:
    assert planned("NVFP4_DEFAULT_CFG", shared_model()).errors == ()
