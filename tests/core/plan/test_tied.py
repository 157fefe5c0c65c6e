"""Weights that two modules share: quantizing one side is refused, with both names and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.config_rules import entry, weights
from helpers.plan_models import new_model, planned
from octavo.core.errors import PlanError

INT8 = {"num_bits": 8}
EMBEDDING_OFF = entry("*embed_tokens*", enable=False)
MESSAGE = (
    "lm_head.weight is tied to model.embed_tokens.weight: quantizing one side would untie them. "
    "Exclude it ({'quantizer_name': '*lm_head*', 'enable': False})"
)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_head_that_is_tied_to_the_embedding(device: str) -> None:
    model = new_model("qwen3", device, tie_word_embeddings=True)

    both = planned(weights(INT8), model).errors
    assert both[1:] == (MESSAGE,)
    assert both[0].startswith(
        "model.embed_tokens.weight is tied to lm_head.weight: quantizing one side would untie"
    )
    assert planned(weights(INT8, EMBEDDING_OFF), model).errors == (MESSAGE,)
    assert planned(weights(INT8, EMBEDDING_OFF, entry("*lm_head*", enable=False)), model).errors == ()
    assert planned("INT8_DEFAULT_CFG", model).errors == ()


def test_inputs_of_the_head_alone_are_no_problem() -> None:
    config = {"quant_cfg": [entry("*input_quantizer", INT8)]}

    assert planned(config, new_model(tie_word_embeddings=True)).errors == ()


def test_quantize_refuses() -> None:
    model = new_model(num_hidden_layers=1, tie_word_embeddings=True)
    with pytest.raises(PlanError) as caught:
        octavo.quantize(model, weights(INT8, EMBEDDING_OFF), quiet=True)

    assert str(caught.value) == f"the plan has 1 problem(s); nothing was changed:\n  {MESSAGE}"
    assert type(model.lm_head) is nn.Linear


def test_layers_that_share_a_weight_name_each_other() -> None:
    model = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in "abc"})
    model["b"].weight = model["c"].weight = model["a"].weight
    errors = planned(weights(INT8), model).errors

    assert [error.partition(":")[0] for error in errors] == [
        "a.weight is tied to b.weight, c.weight",
        "b.weight is tied to a.weight, c.weight",
        "c.weight is tied to a.weight, b.weight",
    ]


def test_a_model_that_is_itself_a_layer_is_tied_to_nothing() -> None:
    assert planned(weights(INT8), nn.Linear(8, 8)).errors == ()


def test_one_layer_under_two_names_is_tied_to_nothing() -> None:
    layer = nn.Linear(8, 8)

    assert planned(weights(INT8), nn.Sequential(layer, nn.ReLU(), layer)).errors == ()


def two(weight: Tensor, other: Tensor) -> nn.ModuleDict:
    model = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in "ab"})
    model["a"].weight, model["b"].weight = nn.Parameter(weight), nn.Parameter(other)
    return model


def test_two_parameters_over_the_same_memory_are_tied() -> None:
    """As older code ties them, through `.data`."""
    weight = torch.randn(8, 8)

    for other in (weight, weight.T):
        assert [error.partition(":")[0] for error in planned(weights(INT8), two(weight, other)).errors] == [
            "a.weight is tied to b.weight",
            "b.weight is tied to a.weight",
        ]


def test_parts_of_one_larger_tensor_are_not() -> None:
    assert planned(weights(INT8), two(*torch.randn(16, 8).split(8))).errors == ()


def test_a_tied_weight_cannot_be_turned_on_later() -> None:
    weight = torch.randn(8, 8)
    inputs = {"quant_cfg": [entry("*input_quantizer", INT8)], "algorithm": None}
    model = octavo.quantize(two(weight, weight), inputs, quiet=True)

    message = (
        "^1 quantizers do not fit; nothing was changed: b.weight is tied to a.weight: quantizing one side"
    )
    with pytest.raises(PlanError, match=message):
        octavo.set_quantizer_by_cfg(model, [entry("b.weight_quantizer", INT8)])

    assert model["b"].weight_quantizer.spec is None
