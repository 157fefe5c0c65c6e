"""The registry of quantized classes: registering, forgetting, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import octavo
from helpers.modules_layers import W8A8, normal
from octavo.core.errors import ConfigError, OctavoError
from octavo.core.modules import class_key, quantized_class, registry


class Scaled(nn.Module):
    """A user's own layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(width, width))
        self.gain = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight) * self.gain


class QuantScaled(octavo.QuantModule, Scaled):
    quantizer_names = ("input_quantizer", "weight_quantizer")

    @classmethod
    def quantizer_shape(cls, layer: Any, quantizer: str) -> tuple[int, ...]:
        return tuple(layer.weight.shape) if quantizer == "weight_quantizer" else (0, layer.weight.shape[1])

    def quantized_weights(self) -> dict[str, Tensor]:
        return {"weight_quantizer": self.weight}

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.input_quantizer(x), self.weight_quantizer(self.weight)) * self.gain


class Negated(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


KEY, QUANT_KEY = class_key(Scaled), class_key(QuantScaled)
LINEAR = "torch.nn.modules.linear:Linear"


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))


def test_keys_are_qualified_names() -> None:
    class Inner(nn.Linear): ...

    assert class_key(nn.Linear) == LINEAR
    assert class_key(Inner).endswith(":test_keys_are_qualified_names.<locals>.Inner")


def test_a_registered_class_is_quantized_calibrated_and_given_back() -> None:
    octavo.register(Scaled, QuantScaled)
    model, x = nn.Sequential(Scaled(), nn.ReLU()), normal(4, 8, seed=1)
    expected_input, expected_weight = x.abs().max(), model[0].weight.abs().amax(1)

    octavo.quantize(model, W8A8, [x], quiet=True)

    layer: Any = model[0]
    assert type(layer) is QuantScaled
    assert torch.equal(layer.input_quantizer.amax, expected_input)
    assert torch.equal(layer.weight_quantizer.amax, expected_weight)
    product = linear(layer.input_quantizer(x), layer.weight_quantizer(layer.weight))
    assert torch.equal(model(x), (product * 0.5).relu())
    octavo.unquantize(model)
    assert type(model[0]) is Scaled


def test_forgetting_a_class_leaves_quantized_models() -> None:
    octavo.register(Scaled, QuantScaled)
    model = octavo.quantize(nn.Sequential(Scaled()), W8A8, [normal(4, 8)], quiet=True)
    octavo.unregister(Scaled)

    assert quantized_class(Scaled) is None
    assert type(model[0]) is QuantScaled
    assert type(octavo.unquantize(model)[0]) is Scaled


def test_a_key_imports_nothing_until_such_a_layer_is_met() -> None:
    octavo.register("nowhere.layers:Wide", "nowhere.quantized:QuantWide")

    assert quantized_class(nn.Bilinear) is None
    assert quantized_class(nn.Linear) is not None


def test_keys_and_classes_are_the_same_registration() -> None:
    octavo.register(KEY, QuantScaled)
    assert quantized_class(Scaled) is QuantScaled
    octavo.unregister(Scaled)
    octavo.register(Scaled, QuantScaled)
    octavo.unregister(KEY)

    assert quantized_class(Scaled) is None


@pytest.mark.parametrize("original", [nn.Linear, LINEAR])
def test_registering_twice_is_refused(original: Any) -> None:
    message = (
        f"^{LINEAR} is registered already, as octavo.core.modules.linear:QuantLinear; unregister it first$"
    )
    with pytest.raises(ConfigError, match=message):
        octavo.register(original, QuantScaled)


@pytest.mark.parametrize(
    ("original", "quantized", "found", "base"),
    [
        (Scaled, Negated, class_key(Negated), "octavo.core.modules.base:QuantModule"),
        (Negated, QuantScaled, QUANT_KEY, class_key(Negated)),
    ],
)
def test_a_quantized_class_must_stand_for_its_layer(
    original: type[nn.Module], quantized: Any, found: str, base: str
) -> None:
    message = f"^{found} must be a subclass of {base} to stand for layers of class {class_key(original)}$"
    with pytest.raises(ConfigError, match=message):
        octavo.register(original, quantized)
    assert quantized_class(original) is None


@pytest.mark.parametrize(
    ("original", "message"),
    [
        (Scaled, f"^{KEY} is not registered\\.$"),
        ("torch.nn.modules.linear:Linaer", f"Linaer is not registered. Did you mean '{LINEAR}'\\?$"),
    ],
)
def test_forgetting_what_is_not_there_is_refused(original: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        octavo.unregister(original)


@pytest.mark.parametrize("key", ["torch.nn.Conv2d", "Conv2d", "torch.nn:Conv2d:x", ""])
def test_a_key_without_colon_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"package\.module:Class"):
        octavo.register(key, QuantScaled)


@pytest.mark.parametrize(
    "quantized", ["nowhere.mod:QuantScaled", "octavo.core.modules.linear:QuantScaledd", "math:sqrt"]
)
def test_a_key_that_cannot_be_imported_is_named(quantized: str) -> None:
    octavo.register(Scaled, quantized)
    with pytest.raises(OctavoError, match=f"{quantized}.*{KEY}"):
        octavo.plan(nn.Sequential(Scaled()), W8A8)


def test_a_class_that_comes_by_key_must_stand_for_its_layer() -> None:
    octavo.register(Negated, "octavo.core.modules.linear:QuantLinear")
    with pytest.raises(ConfigError, match=f"QuantLinear must be a subclass of {class_key(Negated)}"):
        octavo.plan(nn.Sequential(Negated(8, 8)), W8A8)
