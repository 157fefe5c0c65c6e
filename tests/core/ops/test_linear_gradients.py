"""`fake_quantized_linear` equals `linear(fake_quantize(x), fake_quantize(weight), bias)` bit for bit, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ops_cases import (
    CHAINS,
    E4M3,
    INT8,
    INT8_CHANNEL,
    MXFP4,
    NOTHING,
    NVFP4,
    STATIC_SPECS,
    composition,
    fused,
    normal,
    state_of,
)
from octavo.core.formats import QuantSpec, chain_key

Side = tuple[list[Tensor], str, bool]
OFF: Side = ([], NOTHING, True)


def side(x: Tensor, *specs: QuantSpec, range_mask: bool = True) -> Side:
    return state_of(x, *specs), chain_key(specs), range_mask


def leaf(x: Tensor | None, requires_grad: bool = True) -> Any:
    return None if x is None else x.detach().clone().requires_grad_(requires_grad)


def assert_equal_to_composition(
    x: Tensor, weight: Tensor, bias: Tensor | None, x_side: Side, weight_side: Side, frozen: str = ""
) -> None:
    results = []
    for function in (fused, composition):
        leaves = {"x": leaf(x, frozen != "x"), "weight": leaf(weight, frozen != "weight"), "bias": leaf(bias)}
        output = function(*leaves.values(), x_side, weight_side)
        output.backward(normal(*output.shape, seed=9, dtype=output.dtype))
        results.append((output, {name: None if t is None else t.grad for name, t in leaves.items()}))
    (output, gradients), (expected_output, expected) = results
    assert torch.equal(output, expected_output)
    for name, grad in gradients.items():
        if expected[name] is None:
            assert grad is None, name
        else:
            assert grad.dtype == expected[name].dtype
            assert torch.equal(grad, expected[name]), name
            assert expected[name].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("range_mask", [True, False])
@pytest.mark.parametrize("spec", [*STATIC_SPECS, NVFP4, MXFP4], ids=str)
def test_formats(spec: QuantSpec, range_mask: bool, bias: bool, dtype: torch.dtype) -> None:
    x, weight = normal(2, 3, 64, dtype=dtype), normal(32, 64, seed=1, dtype=dtype)
    offset = normal(32, seed=2, dtype=dtype) if bias else None
    assert_equal_to_composition(
        *(x, weight, offset),
        *(side(x, INT8, range_mask=range_mask), side(weight, spec, range_mask=range_mask)),
    )


@pytest.mark.parametrize("masks", [(True, False), (False, True)])
def test_each_side_has_its_own_range_mask(masks: tuple[bool, bool]) -> None:
    x, weight = normal(5, 64), normal(32, 64, seed=1)
    assert_equal_to_composition(
        *(x, weight, None),
        *(side(x, INT8, range_mask=masks[0]), side(weight, INT8_CHANNEL, range_mask=masks[1])),
    )


@pytest.mark.parametrize("specs", CHAINS.values(), ids=CHAINS)
def test_chains_on_both_sides(specs: list[QuantSpec]) -> None:
    x, weight = normal(6, 64), normal(32, 64, seed=1)
    assert_equal_to_composition(x, weight, None, side(x, *specs), side(weight, *specs))


@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64), (2, 3, 4, 64)], ids=str)
def test_number_of_dims(shape: tuple[int, ...]) -> None:
    x, weight = normal(*shape), normal(32, 64, seed=1)
    assert_equal_to_composition(x, weight, normal(32, seed=2), side(x, E4M3), side(weight, INT8_CHANNEL))


def test_inputs_that_are_not_contiguous() -> None:
    x, weight = normal(64, 2, 3).permute(1, 2, 0), normal(64, 32, seed=1).t()
    assert_equal_to_composition(x, weight, normal(32, seed=2), side(x, E4M3), side(weight, INT8_CHANNEL))


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    x, weight = normal(5, 64), normal(32, 64, seed=1)
    assert_equal_to_composition(
        x, weight, normal(32, seed=2), side(x, E4M3), side(weight, INT8_CHANNEL), frozen
    )


@pytest.mark.parametrize("off", ["x", "weight", "both"])
def test_a_side_without_quantizer_is_plain(off: str) -> None:
    x, weight = normal(5, 64), normal(32, 64, seed=1)
    x_side = side(x, E4M3) if off == "weight" else OFF
    weight_side = side(weight, INT8_CHANNEL) if off == "x" else OFF
    plain = torch.nn.functional.linear(
        x if x_side is OFF else torch.ops.octavo.fake_quantize(x, *x_side),
        weight if weight_side is OFF else torch.ops.octavo.fake_quantize(weight, *weight_side),
    )

    assert torch.equal(fused(x, weight, None, x_side, weight_side), plain)
    assert_equal_to_composition(x, weight, None, x_side, weight_side)


def test_sides_without_quantizers_leave_strided_inputs_as_they_are() -> None:
    for size in range(30, 50):
        x, weight = normal(size, 5).t(), normal(17, size, seed=1)
        assert torch.equal(fused(x, weight, None, OFF, OFF), torch.nn.functional.linear(x, weight))


@pytest.mark.parametrize("masks", [(True, True), (False, True), (True, False)])
def test_gradients_of_gradients(masks: tuple[bool, bool]) -> None:
    x, weight = normal(5, 64), normal(32, 64, seed=1)
    sides = side(x, INT8, range_mask=masks[0]), side(weight, INT8_CHANNEL, range_mask=masks[1])
    results = []
    for function in (fused, composition):
        leaves = leaf(x), leaf(weight)
        first = torch.autograd.grad(function(*leaves, None, *sides).square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.any()


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)], ids=str)
def test_no_rows(shape: tuple[int, ...]) -> None:
    x, weight = torch.zeros(shape).requires_grad_(), normal(32, 64, seed=1).requires_grad_()
    output = fused(x, weight, None, ([torch.tensor(1.0)], E4M3.key, True), side(weight, NVFP4))
    output.sum().backward()

    assert output.shape == (*shape[:-1], 32)
    assert x.grad is not None
    assert x.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros(32, 64))
