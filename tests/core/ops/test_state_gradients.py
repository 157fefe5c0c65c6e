"""Gradients of calibrated state against float64, finite differences, and through linear layers and chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.ops_cases import (
    E4M3,
    INT4_BLOCK,
    INT8,
    INT8_CHANNEL,
    MXFP4,
    NVFP4,
    NVFP4_STATIC,
    SPECS,
    normal,
    state_of,
)
from octavo.core import ops
from octavo.core.formats import PerTensor, QuantSpec, chain_key, fake_quantize
from oracles import learned_scales

LEARNABLE = [spec for spec in SPECS if spec.state]


def learning(state: list[Tensor]) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in state]


def expected(grad: Tensor, x: Tensor, state: list[Tensor], spec: QuantSpec) -> list[Any]:
    named = {name: tensor.numpy() for name, tensor in zip(spec.state, state, strict=True)}
    grads = learned_scales.state_gradients(grad.float().numpy(), x.float().numpy(), spec.to_json(), **named)
    return [grads[name] for name in spec.state]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [0.3, 1.0])
@pytest.mark.parametrize("spec", LEARNABLE, ids=str)
def test_gradients_are_those_of_the_float64_oracle(
    spec: QuantSpec, factor: float, dtype: torch.dtype
) -> None:
    x, grad = normal(64, 64, dtype=dtype), normal(64, 64, seed=1, dtype=dtype)
    state = state_of(x, spec, factor=factor)

    found = torch.autograd.grad(ops.fake_quantize(x, learnt := learning(state), spec.key), learnt, grad)

    for got, want in zip(found, expected(grad, x, state, spec), strict=True):
        assert got.dtype == torch.float32
        assert np.abs(want).max() > 0.01
        # Sums of up to 4096 fp32 terms of size 1.
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=2e-4 * np.abs(want).max())


def test_where_everything_saturates_the_gradient_is_the_slope_of_the_forward_pass() -> None:
    x, amax, change = torch.tensor([3.0, -3.0, 5.0]), torch.tensor(1.0), 2.0**-6
    grad = torch.tensor([1.0, 1.0, 2.0])

    (found,) = torch.autograd.grad(ops.fake_quantize(x, learnt := learning([amax]), INT8.key), learnt, grad)

    moved = fake_quantize(x, [amax + change], INT8) - fake_quantize(x, [amax], INT8)
    assert float(found) == pytest.approx(float((grad * moved).sum() / change), rel=1e-4)


def test_a_value_on_the_grid_wants_no_other_scale() -> None:
    x = torch.tensor([0.0, 1.0, 5.0, -7.0])  # steps of 1

    (found,) = torch.autograd.grad(
        ops.fake_quantize(x, learnt := learning([torch.tensor(7.0)]), QuantSpec("int4").key),
        learnt,
        torch.ones(4),
    )

    assert found.item() == pytest.approx(0, abs=1e-5)


def test_blocks_of_zeros_get_no_gradient() -> None:
    x, state = torch.zeros(2, 16), [torch.tensor([[0.0], [1.0]])]

    (found,) = torch.autograd.grad(
        ops.fake_quantize(x, learnt := learning(state), INT4_BLOCK.key), learnt, torch.ones(2, 16)
    )

    assert found.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True)], ids=str)
def test_a_linear_layer_gives_what_its_parts_give(learns: tuple[bool, bool]) -> None:
    x, weight, grad = normal(2, 3, 64), normal(48, 64, seed=1), normal(2, 3, 48, seed=2)
    x_state, weight_state = state_of(x, INT8), state_of(weight, INT4_BLOCK)
    states = [learning(one) if on else one for one, on in zip((x_state, weight_state), learns, strict=True)]
    wanted = [tensor for one in states for tensor in one if tensor.requires_grad]

    whole = ops.fake_quantized_linear(x, weight, None, states[0], INT8.key, states[1], INT4_BLOCK.key)
    found = torch.autograd.grad(whole, wanted, grad)

    parts = torch.nn.functional.linear(
        ops.fake_quantize(x, states[0], INT8.key), ops.fake_quantize(weight, states[1], INT4_BLOCK.key)
    )
    for got, want in zip(found, torch.autograd.grad(parts, wanted, grad), strict=True):
        torch.testing.assert_close(got, want)


def test_scales_learn_beside_weights_and_alone() -> None:
    x, weight = normal(4, 64), normal(48, 64, seed=1)
    state = state_of(weight, INT4_BLOCK)
    grads = []
    for weight_trains in (True, False):
        learnt, trained = learning(state), weight.clone().requires_grad_(weight_trains)
        ops.fake_quantized_linear(
            x, trained, None, [], chain_key([]), learnt, INT4_BLOCK.key
        ).sum().backward()
        grads.append(learnt[0].grad)
        assert (trained.grad is not None) == weight_trains

    assert torch.equal(grads[0], grads[1])


def test_each_stage_of_a_chain_gets_the_gradient_that_later_stages_let_through() -> None:
    x, grad = normal(64, 64), normal(64, 64, seed=1)
    first, second = state_of(x, INT4_BLOCK), state_of(x, E4M3, factor=0.4)
    key = chain_key([INT4_BLOCK, E4M3])

    found = torch.autograd.grad(
        ops.fake_quantize(x, learnt := learning([*first, *second]), key), learnt, grad
    )

    inner = learning(first)
    middle = ops.fake_quantize(x, inner, INT4_BLOCK.key)
    outer = learning(second)
    wanted = torch.autograd.grad(ops.fake_quantize(middle, outer, E4M3.key), [*inner, *outer], grad)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("spec", [INT8, INT8_CHANNEL, INT4_BLOCK, NVFP4, NVFP4_STATIC], ids=str)
def test_stacked_tensors_have_the_gradients_that_each_has_alone(spec: QuantSpec) -> None:
    x, grad = normal(3, 48, 64), normal(3, 48, 64, seed=1)
    each = [state_of(one * (n + 1), spec) for n, one in enumerate(x)]
    stack = [torch.stack(tensors) for tensors in zip(*each, strict=True)]

    found = torch.autograd.grad(
        ops.fake_quantize(x, learnt := learning(stack), spec.stacked().key), learnt, grad
    )

    for number in range(3):
        alone = learning(each[number])
        wanted = torch.autograd.grad(ops.fake_quantize(x[number], alone, spec.key), alone, grad[number])
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(got[number], want)


@pytest.mark.parametrize("spec", [INT8_CHANNEL, NVFP4, INT4_BLOCK], ids=str)
def test_opcheck(spec: QuantSpec) -> None:
    x = normal(6, 64)
    state = state_of(x, spec)

    torch.library.opcheck(
        torch.ops.octavo.fake_quantize_state_backward.default, (normal(6, 64, seed=1), x, state, spec.key)
    )
    torch.library.opcheck(torch.ops.octavo.fake_quantize.default, (x, learning(state), spec.key, True))


def test_formats_without_state_have_none_to_learn() -> None:
    assert torch.ops.octavo.fake_quantize_state_backward(normal(2, 32), normal(2, 32), [], MXFP4.key) == []


def test_a_scalar_amax_of_a_vector_block_sums_over_all_of_it() -> None:
    spec, x = QuantSpec("int8", PerTensor()), torch.full((8,), 2.0)

    (found,) = torch.autograd.grad(
        ops.fake_quantize(x, learnt := learning([torch.tensor(1.0)]), spec.key), learnt, torch.ones(8)
    )

    assert found.item() == pytest.approx(8.0)
