"""Subclasses of a registered class: served where they inherit its forward, reported where they do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.modules_layers import W8A8, WEIGHT_ONLY, expected_output, normal, swap_in
from octavo.core.modules import QuantModule, class_key, quantized_class, unswap

X = normal(4, 8)


class Named(nn.Linear):
    """Inherits forward, and has a name, an initializer and a method of its own."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(width, width)
        self.name = name

    def shout(self) -> str:
        return self.name.upper()


class Masked(nn.Linear):
    """Inherits forward and makes its weight on the fly."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=False)
        self.register_buffer("mask", (normal(width, width, seed=5) > 0).float())
        self.raw = nn.Parameter(self.weight.detach().clone())
        del self.weight

    @property
    def weight(self) -> Tensor:
        return self.raw * self.mask

    @weight.setter
    def weight(self, value: Tensor) -> None:
        pass


class Doubled(nn.Linear):
    """Has a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Grandchild(Doubled):
    """Inherits a forward that is not nn.Linear's."""


class ForwardFromMixin:
    def forward(self, input: Tensor) -> Tensor:
        return input


class Mixed(ForwardFromMixin, nn.Linear):
    """Inherits another forward first."""


def test_an_inherited_forward_is_served_by_a_class_made_on_the_fly() -> None:
    layer: Any = Named(8, "query")
    expected = expected_output(layer, X)
    swap_in(layer)

    assert type(layer).__name__ == "QuantNamed"
    assert type(layer).__mro__.index(QuantModule) < type(layer).__mro__.index(Named)
    assert isinstance(layer, Named)
    assert layer.shout() == "QUERY"
    assert torch.equal(layer(X), expected)
    unswap("layer", layer)
    assert type(layer) is Named


def test_the_class_made_on_the_fly_is_made_once() -> None:
    assert quantized_class(Named) is quantized_class(Named)
    assert type(swap_in(Named(8, "a"))) is type(swap_in(Named(8, "b")))


def test_a_weight_made_on_the_fly_is_the_one_that_is_quantized() -> None:
    layer: Any = Masked(8)
    expected = expected_output(layer, X)
    swap_in(layer)

    assert torch.equal(layer(X), expected)
    assert torch.equal(layer.quantized_weights()["weight_quantizer"], layer.raw * layer.mask)


@pytest.mark.parametrize("cls", [Doubled, Grandchild, Mixed])
def test_a_forward_of_its_own_is_not_served(cls: type[nn.Linear]) -> None:
    assert quantized_class(cls) is None


@pytest.mark.parametrize("cls", [nn.Bilinear, nn.EmbeddingBag, nn.RMSNorm, nn.Module])
def test_other_classes_are_not_served(cls: type[nn.Module]) -> None:
    assert quantized_class(cls) is None


def test_the_plan_reports_what_is_not_served() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Doubled(8, 8), nn.Bilinear(8, 8, 8))
    reasons = {tensor.name: tensor.reason for tensor in octavo.plan(model, WEIGHT_ONLY).tensors}

    assert reasons["0.weight"] == ""
    assert reasons["1.weight"] == (
        f"{class_key(Doubled)} has a forward of its own, unlike Linear: octavo.register(...) a quantized class for it"
    )
    assert reasons["2.weight"] == "no quantized class for Bilinear"


def test_what_is_not_served_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Doubled(8, 8))
    plain = copy.deepcopy(model[1])
    octavo.quantize(model, W8A8, [X], quiet=True)

    assert type(model[1]) is Doubled
    assert torch.equal(model[1](X), plain(X))


def test_a_nearer_registration_wins() -> None:
    class QuantDoubled(QuantModule, Doubled):
        pass

    octavo.register(Doubled, QuantDoubled)
    try:
        assert quantized_class(Doubled) is QuantDoubled
        served = quantized_class(Grandchild)
        assert served is not None
        assert served.__mro__[1] is QuantDoubled
    finally:
        octavo.unregister(Doubled)
    assert quantized_class(Grandchild) is None


def test_a_copy_of_a_swapped_layer_is_apart_and_can_be_undone() -> None:
    layer = swap_in(Named(8, "a"))
    twin = copy.deepcopy(layer)
    expected = layer(X)

    assert type(twin) is type(layer)
    assert torch.equal(twin(X), expected)
    with torch.no_grad():
        twin.weight.zero_()
    twin.weight_quantizer.enabled = False
    assert torch.equal(layer(X), expected)
    unswap("twin", twin)
    assert type(twin) is Named
    assert isinstance(layer, QuantModule)
