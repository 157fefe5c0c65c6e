"""Autocast to bfloat16 over fp32 weights: quantize in fp32, multiply in bfloat16, gradients in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from helpers.ops_cases import E4M3, INT8_CHANNEL, NOTHING, composition, fused, normal, state_of


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = normal(2, 3, 64), normal(32, 64, seed=1), normal(32, seed=2)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


X_SIDE = (state_of(leaves()[0], E4M3), E4M3.key, True)
WEIGHT_SIDE = (state_of(leaves()[1], INT8_CHANNEL), INT8_CHANNEL.key, True)


def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return fused(x, weight, bias, X_SIDE, WEIGHT_SIDE)


def test_equals_the_composition_under_autocast() -> None:
    ours, theirs = leaves(), leaves()
    output = run(*ours)
    with torch.autocast("cpu", torch.bfloat16):
        expected = composition(*theirs, X_SIDE, WEIGHT_SIDE)
    grad = normal(2, 3, 32, seed=3, dtype=torch.bfloat16)
    output.backward(grad)
    expected.backward(grad)

    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.grad is not None
        assert found.grad.dtype == torch.float32
        assert torch.equal(found.grad, wanted.grad)


def test_fake_tensors_have_the_dtype_of_the_result() -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert run(*(mode.from_tensor(leaf.detach()) for leaf in leaves())).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_gives_the_same_bytes(backend: str) -> None:
    compiled = torch.compile(run, backend=backend, fullgraph=True)
    output, expected = compiled(*leaves()), run(*leaves())

    assert output.dtype == expected.dtype
    assert torch.equal(output, expected)


def test_parameters_used_elsewhere_in_the_same_region_keep_their_gradients() -> None:
    x, weight, bias = leaves()
    with torch.autocast("cpu", torch.bfloat16):
        fused(x.detach(), weight, bias, X_SIDE, ([], NOTHING, True))
        plain = linear(normal(3, 64, seed=4), weight, bias)

    assert [g.any() for g in torch.autograd.grad(plain.float().sum(), (weight, bias))] == [True, True]
