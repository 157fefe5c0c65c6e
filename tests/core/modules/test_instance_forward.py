"""A `forward` in an instance's own dict hides its class: known ones are rebound, others refused by name."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.modules_layers import W8A8, WEIGHT_ONLY, TwoLayers, expected_output, normal, swap_in
from octavo.core.errors import UnsupportedError
from octavo.core.modules import QuantModule, unswap

X = normal(4, 32)


def foreign(layer: Any) -> None:
    inner = layer.forward
    layer.forward = lambda x: inner(x) + 1


def test_an_unknown_forward_is_refused_by_name() -> None:
    layer: Any = nn.Linear(32, 32)
    foreign(layer)
    before = dict(vars(layer))
    message = (
        r"^blocks.0.up: this Linear instance has a forward of its own \(<function foreign.<locals>.<lambda> .*\), "
        r"which would hide a quantized class. Quantize before whatever installed it, or exclude the layer$"
    )
    with pytest.raises(UnsupportedError, match=message):
        swap_in(layer, name="blocks.0.up")

    assert type(layer) is nn.Linear
    assert dict(vars(layer)) == before


def test_a_refused_layer_leaves_the_whole_model_as_it_was() -> None:
    model = TwoLayers()
    foreign(model.down)
    expected = model(X)
    with pytest.raises(UnsupportedError, match=r"^down: this Linear instance"):
        octavo.quantize(model, W8A8, [X], quiet=True)

    assert [type(model.up), type(model.down)] == [nn.Linear, nn.Linear]
    assert torch.equal(model(X), expected)


def test_it_can_be_excluded() -> None:
    model = TwoLayers()
    foreign(model.down)
    config = {
        **WEIGHT_ONLY,
        "quant_cfg": [*WEIGHT_ONLY["quant_cfg"], {"quantizer_name": "down*", "enable": False}],
    }
    octavo.quantize(model, config, quiet=True)

    assert isinstance(model.up, QuantModule)
    assert type(model.down) is nn.Linear


@pytest.mark.parametrize("kind", ["other_instance", "other_function", "plain_function"])
def test_an_old_forward_that_is_not_the_layers_own_is_unknown(kind: str) -> None:
    layer: Any = nn.Linear(32, 32)
    layer._old_forward = {
        "other_instance": nn.Linear(32, 32).forward,
        "other_function": MethodType(nn.Module.extra_repr, layer),
        "plain_function": lambda x: x,
    }[kind]
    layer.forward = lambda x: layer._old_forward(x)
    with pytest.raises(UnsupportedError, match=r"^layer: this Linear instance has a forward of its own"):
        swap_in(layer)


def test_the_layers_own_forward_in_its_dict_is_rebound() -> None:
    layer: Any = nn.Linear(32, 32)
    layer.forward = layer.forward
    expected = expected_output(layer, X)
    swap_in(layer)

    assert torch.equal(layer(X), expected)
    unswap("layer", layer)
    assert layer.forward == MethodType(nn.Linear.forward, layer)


def test_a_forward_put_on_a_quantized_layer_is_refused_on_the_way_back() -> None:
    layer = swap_in(nn.Linear(32, 32))
    foreign(layer)
    with pytest.raises(UnsupportedError, match=r"^blocks.0.up: this QuantLinear instance"):
        unswap("blocks.0.up", layer)

    del layer.forward
    unswap("blocks.0.up", layer)
    assert type(layer) is nn.Linear


def test_on_the_way_back_the_message_says_what_to_do() -> None:
    layer = swap_in(nn.Linear(32, 32))
    foreign(layer)
    with pytest.raises(UnsupportedError, match=r"(?i)remove|unquantize before"):
        unswap("layer", layer)


def test_an_unquantize_that_is_refused_changes_nothing() -> None:
    model = octavo.quantize(TwoLayers(), W8A8, [X], quiet=True)
    foreign(model.down)
    expected = model(X)
    with pytest.raises(UnsupportedError, match=r"^down:"):
        octavo.unquantize(model)

    assert torch.equal(model(X), expected)
