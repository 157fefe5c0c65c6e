"""Layers whose weight is computed: torch's parametrizations and the older weight norm."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import octavo
from helpers.modules_layers import WEIGHT_ONLY, TwoLayers, normal
from octavo.core.errors import ModeError
from octavo.core.modules import QuantModule

X = normal(4, 32)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).t()


def one_layer() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32))


def symmetric() -> Any:
    model = one_layer()
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    return model


def normed() -> Any:
    model = one_layer()
    weight_norm(model[0])
    return model


def normed_by_a_hook() -> Any:
    model = one_layer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch recommends the other one
        nn.utils.weight_norm(model[0])
    return model


MAKERS = [symmetric, normed, normed_by_a_hook]


def expected(model: Any, layer: Any) -> Tensor:
    weight = layer.weight_quantizer(model[0].weight)
    return torch.nn.functional.linear(X, weight, model[0].bias)


@pytest.mark.parametrize("make", MAKERS)
def test_the_computed_weight_is_what_is_quantized(make: Any) -> None:
    model, plain = octavo.quantize(make(), WEIGHT_ONLY, quiet=True), make()
    plain(X)  # the hook computes the weight when the layer runs

    assert torch.equal(model[0].weight_quantizer.amax, plain[0].weight.abs().amax(1))
    assert torch.equal(model(X), expected(plain, model[0]))
    assert not torch.equal(model(X), plain(X))


@pytest.mark.parametrize("make", MAKERS)
def test_training_reaches_what_it_is_computed_from(make: Any) -> None:
    model = octavo.quantize(make(), WEIGHT_ONLY, quiet=True)
    model(X).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "bias" not in name}
    assert all(grad is not None and grad.any() for grad in gradients.values())
    before = model(X)

    torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert not torch.equal(model(X), before)


@pytest.mark.parametrize("make", MAKERS)
def test_unquantize_gives_back_the_parametrized_layer(make: Any) -> None:
    model, plain = make(), make()
    before = type(model[0])
    octavo.unquantize(octavo.quantize(model, WEIGHT_ONLY, quiet=True))

    assert type(model[0]) is before
    assert torch.equal(model(X), plain(X))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_a_copy_of_a_quantized_parametrized_layer() -> None:
    model = octavo.quantize(symmetric(), WEIGHT_ONLY, quiet=True)

    assert torch.equal(copy.deepcopy(model)(X), model(X))


@pytest.mark.parametrize("make", MAKERS)
def test_the_plan_counts_what_is_quantized(make: Any) -> None:
    plan = octavo.plan(make(), WEIGHT_ONLY)

    assert plan.coverage > 0.9


def test_a_layer_parametrized_while_quantized_is_not_broken() -> None:
    model: Any = octavo.quantize(TwoLayers(), WEIGHT_ONLY, quiet=True)
    parametrize.register_parametrization(model.up, "bias", nn.Identity())
    assert isinstance(model.up, QuantModule)
    expected = model(X)
    with pytest.raises(
        ModeError, match=r"^up: its class was changed from QuantLinear to ParametrizedQuantLinear"
    ):
        octavo.unquantize(model)

    assert torch.equal(model(X), expected)
    parametrize.remove_parametrizations(model.up, "bias")
    assert torch.equal(octavo.unquantize(model)(X), TwoLayers()(X))
