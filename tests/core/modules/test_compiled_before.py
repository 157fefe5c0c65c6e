"""A model that was compiled before it was quantized does not run stale code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import octavo
from helpers.modules_layers import W8A8, TwoLayers, normal

X = normal(4, 32)


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return octavo.quantize(TwoLayers(), W8A8, [X], quiet=True)(X).detach()


def test_torch_compile(expected: Tensor) -> None:
    model = TwoLayers()
    compiled = torch.compile(model, backend="aot_eager")
    plain = compiled(X)

    octavo.quantize(model, W8A8, [X], quiet=True)
    assert torch.equal(compiled(X), expected)
    octavo.unquantize(model)
    assert torch.equal(compiled(X), plain)


def test_a_layer_compiled_in_place(expected: Tensor) -> None:
    model = TwoLayers()
    model.up.compile(backend="aot_eager")
    plain = model(X)

    octavo.quantize(model, W8A8, [X], quiet=True)
    assert torch.equal(model(X), expected)
    octavo.unquantize(model)
    assert torch.equal(model(X), plain)


def test_the_wrapper_that_torch_compile_returns(expected: Tensor) -> None:
    wrapper = torch.compile(TwoLayers(), backend="aot_eager")
    octavo.quantize(wrapper, W8A8, [X], quiet=True)

    assert torch.equal(wrapper(X), expected)
