"""Rotating and rounding in one operator, against the two in turn."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from helpers.ops_cases import E4M3, E4M3_TOKEN, INT8_CHANNEL, MXFP4, NOTHING, NVFP4_STATIC, normal, state_of
from octavo.core import ops
from octavo.core.formats import QuantSpec, chain_key
from octavo.core.formats.hadamard import hadamard_transform
from octavo.core.quantizers import Rotation, TensorQuantizer

SPECS = [E4M3, INT8_CHANNEL, E4M3_TOKEN, MXFP4, NVFP4_STATIC]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values(spec: QuantSpec) -> None:
    x = normal(6, 96, dtype=torch.bfloat16)
    rotated = hadamard_transform(x, 32)
    state = state_of(rotated, spec)
    assert torch.equal(
        ops.rotated_fake_quantize(x, 32, state, spec.key), ops.fake_quantize(rotated, state, spec.key)
    )
    assert torch.equal(ops.rotated_fake_quantize(x, 32, [], NOTHING), rotated)


@pytest.mark.parametrize("range_mask", [True, False])
@pytest.mark.parametrize("spec", [INT8_CHANNEL, MXFP4, NVFP4_STATIC], ids=str)
def test_gradients_are_those_of_the_two_in_turn(spec: QuantSpec, range_mask: bool) -> None:
    x, weights = normal(6, 64, dtype=torch.float64), normal(6, 64, seed=1, dtype=torch.float64)
    state = state_of(hadamard_transform(x, 64), spec)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    (ops.rotated_fake_quantize(found, 64, state, spec.key, range_mask) * weights).sum().backward()
    rotated = hadamard_transform(expected, 64)
    (ops.fake_quantize(rotated, state, spec.key, range_mask) * weights).sum().backward()
    assert found.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-13, atol=1e-13)
    if range_mask and spec.state:
        whole = hadamard_transform(weights, 64)
        assert not torch.allclose(found.grad, whole), "some values saturate"


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("spec", [E4M3, MXFP4], ids=str)
def test_opcheck(spec: QuantSpec, requires_grad: bool) -> None:
    x = normal(6, 64)
    state = state_of(x, spec)
    opcheck(
        torch.ops.octavo.rotated_fake_quantize.default,
        (x.requires_grad_(requires_grad), 16, state, chain_key([spec]), True),
    )


def test_a_quantizer_rotates_and_rounds_at_once() -> None:
    x, quantizer = normal(2, 3, 5, 8, dtype=torch.bfloat16), TensorQuantizer(E4M3)
    quantizer.rotation = Rotation(back=True)
    quantizer.set_state(amax=torch.tensor(2.0))
    rotated = hadamard_transform(x)
    expected = hadamard_transform(ops.fake_quantize(rotated, [torch.tensor(2.0)], E4M3.key))
    assert torch.equal(quantizer(x), expected)
    graph = torch.export.export(torch.nn.Sequential(quantizer), (x,)).graph
    assert [node.target for node in graph.nodes].count(torch.ops.octavo.rotated_fake_quantize.default) == 1
