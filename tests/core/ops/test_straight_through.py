"""Gradients of `fake_quantize` by their definition: they pass where a value does not saturate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.ops_cases import (
    CHAINS,
    E4M3_TOKEN,
    INT8,
    INT8_CHANNEL,
    MXFP4,
    MXFP6,
    NVFP4,
    SPECS,
    STATIC_SPECS,
    normal,
    state_of,
)
from octavo.core import ops
from octavo.core.formats import QuantSpec, chain_key

DTYPES = [torch.float32, torch.bfloat16]


def gradient(x: Tensor, state: list[Tensor], key: str, range_mask: bool, grad: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(ops.fake_quantize(x, state, key, range_mask), x, grad)
    return found


def inside(x: Tensor, state: list[Tensor], spec: QuantSpec) -> Tensor:
    """Return where static `spec` does not saturate: between what the infinities become.

    The scales of two-level blocks are rounded for storage, perhaps down; the block's amax is inside all the same.
    """
    low = ops.fake_quantize(torch.full_like(x, -torch.inf), state, spec.key)
    high = ops.fake_quantize(torch.full_like(x, torch.inf), state, spec.key)
    if spec.global_max is not None:
        amax = torch.minimum(*state).repeat_interleave(16, -1)
        low, high = torch.minimum(low, -amax), torch.maximum(high, amax)
    return (low <= x) & (x <= high)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", STATIC_SPECS, ids=str)
def test_saturated_values_get_no_gradient_and_the_others_all_of_it(
    spec: QuantSpec, dtype: torch.dtype
) -> None:
    x, grad = normal(64, 64, dtype=dtype), normal(64, 64, seed=1, dtype=dtype)
    state = state_of(x, spec, factor=0.3)
    mask = inside(x.float(), state, spec)

    found = gradient(x, state, spec.key, True, grad)

    assert found.dtype == dtype
    assert torch.equal(found, torch.where(mask, grad, 0.0))
    assert 0.02 < (~mask).float().mean() < 0.9


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_without_range_mask_the_gradient_passes_whole(spec: QuantSpec) -> None:
    x, grad = normal(64, 64), normal(64, 64, seed=1)

    assert torch.equal(gradient(x, state_of(x, spec), spec.key, False, grad), grad)


@pytest.mark.parametrize("spec", [E4M3_TOKEN, MXFP4, MXFP6], ids=str)
def test_dynamic_scales_never_saturate(spec: QuantSpec) -> None:
    x, grad = normal(64, 64), normal(64, 64, seed=1)

    assert torch.equal(gradient(x, [], spec.key, True, grad), grad)


def test_a_dynamic_block_beyond_the_calibrated_tensor_saturates() -> None:
    x, grad = torch.ones(2, 16), normal(2, 16, seed=1)
    x[1] = 100.0

    found = gradient(x, [torch.tensor(1.0)], NVFP4.key, True, grad)

    assert torch.equal(found[0], grad[0])
    assert torch.equal(found[1], torch.zeros(16))


@pytest.mark.parametrize("static", [True, False])
def test_a_value_equal_to_amax_gets_its_gradient_under_two_level_scales(static: bool) -> None:
    spec = QuantSpec("e2m1", NVFP4.granularity, "e4m3", 2688.0, dynamic=not static)
    x = normal(64, 64)
    state = state_of(x, spec, factor=1.0)

    assert torch.equal(gradient(x, state, spec.key, True, torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.parametrize("spec", [INT8, INT8_CHANNEL], ids=str)
def test_a_value_equal_to_amax_gets_its_gradient(spec: QuantSpec) -> None:
    x = normal(64, 64)
    state = state_of(x, spec, factor=1.0)

    assert torch.equal(gradient(x, state, spec.key, True, torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.parametrize(
    "specs", [c for c in CHAINS.values() if len(c) == 2], ids=lambda c: " ".join(map(str, c))
)
def test_a_chain_stops_the_gradient_where_any_stage_saturates(specs: list[QuantSpec]) -> None:
    x, grad = normal(64, 64), normal(64, 64, seed=1)
    first, second = specs
    first_state = state_of(x, first, factor=0.9)
    between = ops.fake_quantize(x, first_state, first.key)
    second_state = state_of(between, second)

    found = gradient(x, [*first_state, *second_state], chain_key(specs), True, grad)

    # Stage by stage, each with its own operator and its own node in the graph.
    last = gradient(between, second_state, second.key, True, grad)
    assert torch.equal(found, gradient(x, first_state, first.key, True, last))
    assert (found == 0).any()
    assert (found == grad).any()


def test_the_mask_of_a_chain_is_the_product_of_both_intervals() -> None:
    specs = [QuantSpec("int8"), QuantSpec("int4")]
    x = torch.tensor([0.1, 0.7, 3.0, -0.1, -0.7, -3.0])

    found = gradient(x, [torch.tensor(1.0), torch.tensor(0.5)], chain_key(specs), True, torch.ones(6))

    assert found.tolist() == [1, 0, 0, 1, 0, 0]


def test_infinities_and_nan_get_no_gradient() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])

    assert gradient(x, [torch.tensor(1.0)], INT8.key, True, torch.ones(4)).tolist() == [0, 0, 0, 1]


def test_state_that_asks_for_no_gradient_gets_none() -> None:
    amax = torch.tensor(1.0)
    ops.fake_quantize(normal(4).requires_grad_(), [amax], INT8.key).sum().backward()

    assert amax.grad is None


@pytest.mark.parametrize("shape", [(0, 16), (3, 0)])
def test_empty_tensors_have_empty_gradients(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)

    assert gradient(x, [torch.tensor(1.0)], INT8.key, True, x).shape == shape


def test_gradients_of_gradients() -> None:
    x, state = normal(64).requires_grad_(), [torch.tensor(1.0)]
    y = ops.fake_quantize(x, state, INT8.key)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)

    assert torch.equal(second, torch.where(inside(x.detach(), state, INT8), 2.0, 0.0))
