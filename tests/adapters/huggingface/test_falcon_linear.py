"""Falcon's linear layer adds its bias in a step of its own, and so does its quantized class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.falcon.modeling_falcon import FalconLinear

import octavo
from helpers.adapters_models import switch_off
from octavo.core.modules import quantized_class


def layer_and_input(bias: bool) -> tuple[FalconLinear, Tensor]:
    torch.manual_seed(0)
    layer = FalconLinear(64, 48, bias=bias).to(torch.bfloat16)  # where one step and two round differently
    return layer, torch.randn(2, 9, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_computes_the_same_when_nothing_is_rounded(bias: bool) -> None:
    layer, x = layer_and_input(bias)
    expected = layer(x)

    octavo.quantize(layer, "FP8_DEFAULT_CFG", [x], quiet=True)
    assert not torch.equal(layer(x), expected)
    switch_off(layer)

    assert torch.equal(layer(x), expected)


def test_the_product_is_that_of_the_quantized_input_and_weight() -> None:
    layer, x = layer_and_input(bias=True)

    octavo.quantize(layer, "FP8_DEFAULT_CFG", [x], quiet=True)

    assert type(layer) is quantized_class(FalconLinear)
    expected = layer.input_quantizer(x) @ layer.weight_quantizer(layer.weight).T + layer.bias
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), torch.nn.Linear.forward(layer, x))


def test_the_class_comes_back() -> None:
    layer, x = layer_and_input(bias=True)
    expected = layer(x)

    octavo.quantize(layer, "INT8_WEIGHT_ONLY_CFG", quiet=True)
    octavo.unquantize(layer)

    assert type(layer) is FalconLinear
    assert torch.equal(layer(x), expected)
