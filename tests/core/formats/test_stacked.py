"""Stacked tensors: every one comes out as it would alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.core.formats import (
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantSpec,
    compute_amax,
    dequantize,
    fake_quantize,
    in_range,
    quantize,
)

FORMATS: dict[str, QuantSpec] = {
    "tensor": QuantSpec("e4m3", PerTensor()),
    "channel": QuantSpec("int8", PerChannel(0)),
    "token": QuantSpec("e4m3", PerToken(), arithmetic="divide_native"),
    "block": QuantSpec("int4", PerBlock(((-1, 16),))),
    "square": QuantSpec("e4m3", PerBlock(((-1, 16), (-2, 8)))),
    "padded": QuantSpec("int4", PerBlock(((-1, 24),))),
    "nvfp4": QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True),
    "nvfp4 static": QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0),
    "mxfp4": QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True),
}


@pytest.fixture
def stack() -> Tensor:
    """Three weights of very different sizes."""
    torch.manual_seed(0)
    return (torch.randn(3, 8, 64) * torch.tensor([1.0, 1e-3, 30.0])[:, None, None]).bfloat16()


def state_of(x: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
    amax = compute_amax(x, spec)
    largest = x.abs().float()
    values = {"amax": amax, "global_amax": largest.amax((-2, -1)) if spec.is_stacked else largest.amax()}
    return {name: values[name] for name in spec.state}


def bits(x: Tensor) -> list[int]:
    return x.contiguous().flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("spec", FORMATS.values(), ids=FORMATS)
def test_each_comes_out_as_it_would_alone(spec: QuantSpec, stack: Tensor) -> None:
    stacked = spec.stacked()
    state = list(state_of(stack, stacked).values())
    alone = [list(state_of(x, spec).values()) for x in stack]

    for name, tensor in zip(stacked.state, state, strict=True):
        assert tuple(tensor.shape) == stacked.state_shape(name, stack.shape)
    assert all(torch.equal(t[e], alone[e][i]) for i, t in enumerate(state) for e in range(3))

    for function in (fake_quantize, in_range):
        expected = torch.stack([function(x, s, spec) for x, s in zip(stack, alone, strict=True)])
        assert torch.equal(function(stack, state, stacked), expected)

    parts: list[Any] = [quantize(x, s, spec) for x, s in zip(stack, alone, strict=True)]
    together = quantize(stack, state, stacked)
    for found, each in zip(together, zip(*parts, strict=True), strict=True):
        assert (found is None) == (each[0] is None)
        assert found is None or bits(found) == bits(torch.stack(each))
    back = dequantize(*together, stacked, stack.shape, stack.dtype)
    assert torch.equal(back, fake_quantize(stack, state, stacked))


@pytest.mark.parametrize("spec", FORMATS.values(), ids=FORMATS)
def test_json_and_back(spec: QuantSpec) -> None:
    stacked = spec.stacked()

    assert QuantSpec.from_json(stacked.to_json()) == stacked
    assert stacked.unstacked() == spec == spec.unstacked()
    assert str(stacked) == str(spec).replace(f"{spec.element} ", f"{spec.element} stacked ", 1)
