"""`torch.library.opcheck`: schema, autograd registration, fake tensors, ahead-of-time dispatch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from helpers.ops_cases import (
    CHAINS,
    E4M3,
    E4M3_SQUARE,
    INT4_PADDED,
    INT8,
    INT8_CHANNEL,
    MXFP4,
    NOTHING,
    NVFP4,
    NVFP4_STATIC,
    normal,
    state_of,
)
from octavo.core import ops
from octavo.core.formats import QuantSpec, chain_key

octavo_ops = torch.ops.octavo
SPECS = [INT8_CHANNEL, E4M3_SQUARE, NVFP4, NVFP4_STATIC, MXFP4, INT4_PADDED]
# test_schema compares inputs before and after, and torch cannot compare float8 tensors.
WITHOUT_SCHEMA = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_operators_without_gradient(spec: QuantSpec) -> None:
    x = normal(2, 3, 64) if spec is not INT8_CHANNEL else normal(6, 64)
    state = state_of(x, spec)

    opcheck(octavo_ops.amax.default, (x, spec.key))
    opcheck(octavo_ops.quantize.default, (x, state, spec.key))
    opcheck(octavo_ops.fake_quantize_backward.default, (normal(*x.shape, seed=1), x, state, spec.key))
    parts = ops.quantize(x, state, spec)
    utils = {"test_utils": WITHOUT_SCHEMA} if parts.scale.dtype == torch.float8_e4m3fn else {}
    opcheck(octavo_ops.dequantize.default, (*parts, spec.key, x.shape, torch.bfloat16), **utils)
    opcheck(octavo_ops.squared_error.default, (x, *parts, spec.key), **utils)


@pytest.mark.parametrize(
    "x",
    [
        normal(6, 64),
        normal(64, 6).t(),
        normal(2, 3, 64, dtype=torch.bfloat16),
        normal(64),
        normal(0, 64),
    ],
    ids=["contiguous", "transposed", "bfloat16", "vector", "empty"],
)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_fake_quantize_over_layouts(x: Tensor, requires_grad: bool) -> None:
    state = [torch.tensor(0.8)]
    opcheck(
        octavo_ops.fake_quantize.default,
        (x.detach().requires_grad_(requires_grad), state, E4M3.key, requires_grad),
    )


@pytest.mark.parametrize("specs", CHAINS.values(), ids=CHAINS)
def test_fake_quantize_over_chains(specs: list[QuantSpec]) -> None:
    x = normal(6, 64).requires_grad_()
    opcheck(octavo_ops.fake_quantize.default, (x, state_of(x, *specs), chain_key(specs), True))


def test_fake_quantize_of_an_empty_chain_does_not_alias() -> None:
    opcheck(octavo_ops.fake_quantize.default, (normal(6, 64), [], NOTHING, True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("specs", CHAINS.values(), ids=CHAINS)
def test_fake_quantized_linear(specs: list[QuantSpec], bias: bool) -> None:
    x = normal(2, 3, 64).requires_grad_()
    weight = normal(32, 64, seed=1).requires_grad_()
    offset = normal(32, seed=2).requires_grad_() if bias else None
    arguments = (
        *(x, weight, offset),
        *(state_of(x, INT8), INT8.key),
        *(state_of(weight, *specs), chain_key(specs)),
        *(True, bias, None),
    )
    opcheck(octavo_ops.fake_quantized_linear.default, arguments)


def test_fake_quantized_linear_of_a_frozen_weight_without_quantizers() -> None:
    x, weight = normal(3, 64).requires_grad_(), normal(32, 64, seed=1)
    opcheck(
        octavo_ops.fake_quantized_linear.default,
        (x, weight, None, [], NOTHING, [], NOTHING, True, True, None),
    )
