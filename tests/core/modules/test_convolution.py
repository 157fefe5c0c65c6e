"""Quantized convolutions: torch's own layers on operands that core.formats fake-quantizes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.modules_layers import W8A8, WEIGHT_ONLY, normal
from octavo.core import formats
from octavo.core.formats import PerChannel, QuantSpec
from octavo.core.modules import QuantConvolution

INPUT, WEIGHT = QuantSpec("int8"), QuantSpec("int8", PerChannel(0))
CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "Conv1d": (nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular"), normal(2, 4, 9)),
    "Conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), normal(2, 4, 8, 8)),
    "Conv2d without batch": (nn.Conv2d(4, 6, 3, bias=False), normal(4, 8, 8)),
    "Conv3d": (nn.Conv3d(2, 4, 2, dilation=2), normal(2, 2, 5, 5, 5)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), normal(2, 4, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), normal(2, 4, 5, 5)),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 4, 2, bias=False), normal(2, 2, 4, 4, 4)),
}


def fake_quantized(x: Tensor, spec: QuantSpec) -> Tensor:
    return formats.fake_quantize(x, [formats.compute_amax(x, spec)], spec)


def with_quantized_weight(layer: nn.Module) -> nn.Module:
    twin = copy.deepcopy(layer)
    twin.weight.data = fake_quantized(layer.weight.data, WEIGHT)
    return twin


def quantized(layer: nn.Module, x: Tensor, config: Any = W8A8) -> Any:
    return octavo.quantize(nn.Sequential(copy.deepcopy(layer)), config, [x], quiet=True)


@pytest.mark.parametrize("case", CASES)
def test_input_and_weight_are_quantized(case: str) -> None:
    layer, x = CASES[case]
    expected = with_quantized_weight(layer)(fake_quantized(x, INPUT))

    model = quantized(layer, x)

    assert torch.equal(model(x), expected)
    assert not torch.equal(expected, layer(x))
    assert model[0].weight_quantizer.amax.shape == layer.weight.shape[:1]
    assert type(octavo.unquantize(model)[0]) is type(layer)
    assert torch.equal(model(x), layer(x))


def test_the_output_size_of_a_transposed_convolution() -> None:
    layer, x = CASES["ConvTranspose2d"]
    model = quantized(layer, x, WEIGHT_ONLY)

    assert torch.equal(
        model[0](x, output_size=(12, 12)), with_quantized_weight(layer)(x, output_size=(12, 12))
    )
    assert model[0](x, output_size=(12, 12)).shape != model[0](x).shape


@pytest.mark.parametrize("case", ["Conv2d", "ConvTranspose2d"])
def test_gradients_pass_straight_through_where_values_do_not_saturate(case: str) -> None:
    layer, x = CASES[case]
    model, wide = quantized(layer, x), (x * 1.5).requires_grad_()
    amax = formats.compute_amax(x, INPUT)
    model(wide).square().sum().backward()

    twin, twin_x = (
        with_quantized_weight(layer),
        formats.fake_quantize(wide.detach(), [amax], INPUT).requires_grad_(),
    )
    twin(twin_x).square().sum().backward()
    inside = formats.in_range(wide.detach(), [amax], INPUT)

    assert 0 < (~inside).sum() < inside.numel()
    assert torch.equal(wide.grad, twin_x.grad * inside)
    assert torch.equal(model[0].weight.grad, twin.weight.grad)  # no weight saturates


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("case", ["Conv2d", "ConvTranspose2d"])
def test_compiled_whole_with_the_same_bytes(case: str) -> None:
    layer, x = CASES[case]
    model = quantized(layer, x)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)

    assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()


def test_the_plan_shows_kernels_and_refuses_blocks_that_they_do_not_have() -> None:
    layer, _ = CASES["Conv2d"]
    plan = octavo.plan(nn.Sequential(layer), W8A8)
    (weight,) = [tensor for tensor in plan.tensors if tensor.name == "0.weight"]

    assert issubclass(plan.layers[0].site.quantized, QuantConvolution)
    assert (weight.weight, weight.inputs, weight.shape) == ((WEIGHT,), (INPUT,), (6, 2, 3, 3))
    assert weight.bytes_after == 6 * 2 * 3 * 3 + 4 * 6
    assert (
        "0.weight_quantizer: last dim 3 is not divisible by the block of 16"
        in octavo.plan(nn.Sequential(layer), "NVFP4_DEFAULT_CFG").errors[0]
    )


def test_static_scales_per_input_channel_count_from_the_end() -> None:
    """An axis counted from the front would be another one for an input without a batch."""
    layer, x = CASES["Conv2d"]
    config = {"quant_cfg": [{"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": -3}}]}

    assert quantized(layer, x, {**config, "algorithm": "max"})[0].input_quantizer.amax.shape == (4,)
    config["quant_cfg"][0]["cfg"] = {"num_bits": 8, "axis": 1}
    assert "follow a dim that varies" in octavo.plan(nn.Sequential(layer), config).errors[0]
