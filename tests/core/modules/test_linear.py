"""QuantLinear: where each quantizer acts, and what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from helpers.modules_layers import INT8, INT8_CHANNEL, calibrated, expected_output, normal, swap_in
from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.modules import QuantModule, quantized_class
from octavo.core.quantizers import Quantizer, SequentialQuantizer, TensorQuantizer

X = normal(2, 3, 32)
NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
MXFP4 = QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True)


class Record:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        self.seen.append(x)


def layer_with(**quantizers: Quantizer) -> Any:
    torch.manual_seed(0)
    names = ("input_quantizer", "weight_quantizer", "output_quantizer")
    return swap_in(nn.Linear(32, 16), {name: quantizers.get(name, TensorQuantizer()) for name in names})


def plain() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(32, 16)


@pytest.mark.parametrize("bias", [True, False])
def test_input_and_weight_are_quantized(bias: bool) -> None:
    layer = nn.Linear(32, 16, bias=bias)
    expected = expected_output(layer, X)

    assert torch.equal(swap_in(layer)(X), expected)
    assert not torch.equal(expected, linear(X, layer.weight, layer.bias))


@pytest.mark.parametrize("spec", [INT8, NVFP4, MXFP4], ids=str)
@pytest.mark.parametrize("name", ["input_quantizer", "weight_quantizer", "output_quantizer"])
def test_each_quantizer_acts_on_its_own_tensor(name: str, spec: QuantSpec) -> None:
    x, weight = X, plain().weight
    output = linear(x, weight, plain().bias)
    tensor = {"input_quantizer": x, "weight_quantizer": weight, "output_quantizer": output}[name]
    quantizer = calibrated(spec, tensor)
    rounded = quantizer(tensor)
    expected = {
        "input_quantizer": lambda: linear(rounded, weight, plain().bias),
        "weight_quantizer": lambda: linear(x, rounded, plain().bias),
        "output_quantizer": lambda: rounded,
    }[name]()

    assert torch.equal(layer_with(**{name: quantizer})(x), expected)
    assert not torch.equal(expected, output)


def test_chains_of_formats_on_a_weight() -> None:
    weight = plain().weight
    chain = SequentialQuantizer([calibrated(INT8_CHANNEL, weight), calibrated(QuantSpec("e4m3"), weight)])

    assert torch.equal(layer_with(weight_quantizer=chain)(X), linear(X, chain(weight), plain().bias))


def test_all_off_is_the_plain_layer_both_ways() -> None:
    layer, original = layer_with(), plain()
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    layer(x).square().sum().backward()
    original(y).square().sum().backward()

    assert torch.equal(layer(X), original(X))
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(layer.weight.grad, original.weight.grad)
    assert torch.equal(layer.bias.grad, original.bias.grad)


def test_pre_quant_scale_acts_before_rounding() -> None:
    scale = torch.linspace(0.5, 2.0, 32)
    quantizer = calibrated(INT8, X)
    quantizer.pre_quant_scale = scale
    layer = layer_with(input_quantizer=quantizer)
    twin = calibrated(INT8, X)

    assert torch.equal(layer(X), linear(twin(X * scale), plain().weight, plain().bias))


def test_collectors_see_all_three_tensors_unrounded() -> None:
    layer, records = layer_with(**{f"{n}_quantizer": calibrated(INT8, X) for n in ("input", "weight")}), {}
    for name, quantizer in layer.quantizers().items():
        quantizer.collector = records[name] = Record()
    output = layer(X)

    assert torch.equal(output, plain()(X))
    assert records["input_quantizer"].seen[0] is X
    assert records["weight_quantizer"].seen[0] is layer.weight
    assert torch.equal(records["output_quantizer"].seen[0], output)


def does_not_saturate(x: Tensor) -> Tensor:
    return (x <= 0.1) & (x >= -0.1 * 128 / 127)  # INT8 has one code more below zero


def gradients(name: str, range_mask: bool) -> tuple[Tensor, Tensor, Tensor]:
    quantizer = TensorQuantizer(INT8, range_mask=range_mask)
    quantizer.set_state(amax=torch.tensor(0.1))
    layer, x = layer_with(**{name: quantizer}), X.clone().requires_grad_()
    layer(x).sum().backward()
    return x.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize(("name", "index"), [("input_quantizer", 0), ("weight_quantizer", 1)])
def test_range_mask_stops_the_gradient_of_its_own_tensor_alone(name: str, index: int) -> None:
    inside = does_not_saturate((X, plain().weight)[index])
    expected = list(gradients(name, range_mask=False))
    assert not (expected[index] == 0).any()
    expected[index] = torch.where(inside, expected[index], 0.0)

    assert all(map(torch.equal, gradients(name, range_mask=True), expected))


def test_range_mask_of_the_output_stops_every_gradient() -> None:
    inside = does_not_saturate(plain()(X))

    assert torch.equal(gradients("output_quantizer", range_mask=True)[2], inside.float().sum((0, 1)))
    assert torch.equal(gradients("output_quantizer", range_mask=False)[2], torch.full((16,), 6.0))


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)], ids=str)
@pytest.mark.parametrize("spec", [INT8, NVFP4, MXFP4], ids=str)
def test_no_rows(spec: QuantSpec, shape: tuple[int, ...]) -> None:
    layer = layer_with(input_quantizer=calibrated(spec, X), weight_quantizer=calibrated(spec, plain().weight))

    assert layer(torch.zeros(shape)).shape == (*shape[:-1], 16)


def test_shapes_and_weights_that_the_plan_asks_for() -> None:
    layer = layer_with()
    shapes = {name: QuantModule.quantizer_shape(layer, name) for name in layer.quantizer_names}
    own = {name: type(layer).quantizer_shape(plain(), name) for name in layer.quantizer_names}

    assert set(shapes.values()) == {None}
    assert own == {"input_quantizer": (0, 32), "weight_quantizer": (16, 32), "output_quantizer": (0, 16)}
    assert list(layer.quantized_weights()) == ["weight_quantizer"]
    assert layer.quantized_weights()["weight_quantizer"] is layer.weight
    assert quantized_class(nn.Linear) is type(layer)
    assert list(layer.quantizers()) == list(layer.quantizer_names)
