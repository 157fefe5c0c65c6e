"""The operators compute what the functions of `formats` do, in results of their own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from helpers.ops_cases import CHAINS, INT8, INT8_CHANNEL, SPECS, STATIC_SPECS, normal, state_of
from octavo.core import formats, ops
from octavo.core.formats import QuantSpec, chain_key

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_operator_equals_its_function(spec: QuantSpec, dtype: torch.dtype) -> None:
    x = normal(64, 6, dtype=dtype).t() if spec is not INT8_CHANNEL else normal(2, 3, 64, dtype=dtype)
    state = state_of(x, spec)

    assert torch.equal(ops.amax(x, spec), formats.compute_amax(x, spec))
    fake = ops.fake_quantize(x, state, spec.key)
    assert torch.equal(fake, formats.fake_quantize(x, state, spec))
    packed, expected = ops.quantize(x, state, spec), formats.quantize(x, state, spec)
    for found, wanted in zip(packed, expected, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found.dtype == wanted.dtype
            assert torch.equal(found.float(), wanted.float())
    unpacked = ops.dequantize(packed, spec, x.shape, dtype)
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, fake)


@pytest.mark.parametrize("specs", CHAINS.values(), ids=CHAINS)
def test_a_chain_applies_its_formats_in_turn(specs: list[QuantSpec]) -> None:
    x = normal(6, 64)
    expected, state = x, []
    for spec in specs:
        own = state_of(expected, spec)
        expected, state = formats.fake_quantize(expected, own, spec), [*state, *own]

    assert torch.equal(ops.fake_quantize(x, state, chain_key(specs)), expected)


def test_each_side_of_a_linear_has_its_own_state_and_format() -> None:
    x, weight, bias = normal(5, 64), normal(32, 64, seed=1), normal(32, seed=2)
    x_state, weight_state = state_of(x, INT8), state_of(weight, INT8_CHANNEL)
    expected = linear(
        formats.fake_quantize(x, x_state, INT8),
        formats.fake_quantize(weight, weight_state, INT8_CHANNEL),
        bias,
    )

    found = ops.fake_quantized_linear(
        x, weight, bias, x_state, INT8.key, weight_state, INT8_CHANNEL.key, True, True
    )

    assert torch.equal(found, expected)


@pytest.mark.parametrize("spec", STATIC_SPECS, ids=str)
def test_inputs_are_left_as_they_were(spec: QuantSpec) -> None:
    x = normal(64, 64)
    state = state_of(x, spec)
    before = [tensor.clone() for tensor in (x, *state)]

    ops.fake_quantize(x, state, spec.key)
    ops.quantize(x, state, spec)
    torch.ops.octavo.fake_quantize_backward(x, x, state, spec.key)
    results = [ops.fake_quantize(x, state, spec.key), *filter(torch.is_tensor, ops.quantize(x, state, spec))]

    assert all(map(torch.equal, (x, *state), before))
    owned = {tensor.untyped_storage().data_ptr() for tensor in (x, *state)}
    assert not owned & {result.untyped_storage().data_ptr() for result in results}


def test_missing_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['int8 tensor'\] takes 1 calibrated tensors \(amax\), found 0"):
        ops.fake_quantize(normal(4), [], INT8.key)


def test_state_that_no_stage_takes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes 1 calibrated tensors \(amax\), found 2"):
        ops.fake_quantize(normal(4), [torch.ones(())] * 2, INT8.key)
