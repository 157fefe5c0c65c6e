"""Tensors without ordinary values: empty, zeros, scalars, strided, doubles, with NaN and infinity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.errors import ShapeError
from octavo.core.formats import (
    Granularity,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantSpec,
    dequantize,
    fake_quantize,
    quantize,
)
from oracles import number_formats as oracle

GRANULARITIES: list[Granularity] = [
    PerTensor(),
    PerChannel(0),
    PerChannel(1),
    PerToken(),
    PerBlock(((-1, 4),)),
    PerBlock(((-1, 4), (-2, 4))),
]
DYNAMIC: list[dict[str, Any]] = [
    {"element": "int8"},
    {"element": "int4", "arithmetic": "divide"},
    {"element": "e4m3"},
    {"element": "e2m1", "scale": "e8m0"},
    {"element": "e2m1", "scale": "e8m0", "ties": "toward_zero"},
    {"element": "e2m1", "scale": "e4m3", "global_max": 2688.0},
]


def dynamic_spec(fields: dict[str, Any], granularity: Granularity) -> QuantSpec:
    return QuantSpec(granularity=granularity, dynamic=True, **fields)


def state_of(x: torch.Tensor, spec: QuantSpec) -> list[torch.Tensor]:
    return [x.float().abs().max() if x.numel() else torch.tensor(0.0) for _ in spec.state]


def both_ways(x: torch.Tensor, spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    quantized = quantize(x, state_of(x, spec), spec)
    return fake_quantize(x, state_of(x, spec), spec), dequantize(*quantized, spec, x.shape, x.dtype)


@pytest.mark.parametrize("shape", [(0, 6), (6, 0), (0, 0)])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("fields", DYNAMIC, ids=str)
def test_empty_tensors_stay_empty(
    fields: dict[str, Any], granularity: Granularity, shape: tuple[int, int]
) -> None:
    spec = dynamic_spec(fields, granularity)
    x = torch.zeros(shape, dtype=torch.bfloat16)

    for result in both_ways(x, spec):
        assert result.shape == shape
        assert result.dtype == torch.bfloat16
    payload, scale, _ = quantize(x, state_of(x, spec), spec)
    assert payload.shape == (shape[0], -(-shape[1] * spec.element_type.bits // 8))
    assert scale.shape == granularity.scale_shape(shape)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("fields", DYNAMIC, ids=str)
def test_zeros_stay_zero(fields: dict[str, Any], granularity: Granularity) -> None:
    spec = dynamic_spec(fields, granularity)

    for result in both_ways(torch.zeros(6, 6), spec):
        assert (result == 0).all()
        assert (result.signbit() == (spec.ties == "toward_zero")).all()  # there, every exact zero is −0


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("fields", DYNAMIC, ids=str)
def test_a_strided_tensor_has_the_codes_of_its_copy(fields: dict[str, Any], granularity: Granularity) -> None:
    spec = dynamic_spec(fields, granularity)
    x = torch.randn(9, 14, generator=torch.Generator().manual_seed(0)).t()[::2]
    copy = x.contiguous()

    assert torch.equal(both_ways(x, spec)[0], both_ways(copy, spec)[0])
    assert torch.equal(both_ways(x, spec)[1], both_ways(copy, spec)[1])
    assert torch.equal(quantize(x, state_of(x, spec), spec)[0], quantize(copy, state_of(x, spec), spec)[0])


@pytest.mark.parametrize("fields", DYNAMIC, ids=str)
def test_doubles_that_fit_in_fp32_have_the_values_of_fp32(fields: dict[str, Any]) -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    spec = dynamic_spec(fields, PerToken())

    for single, double in zip(both_ways(x, spec), both_ways(x.double(), spec), strict=True):
        assert double.dtype == torch.float64
        assert torch.equal(double, single.double())


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("fields", DYNAMIC[:5], ids=str)
def test_nan_and_infinity_spoil_their_own_block_only(
    fields: dict[str, Any], granularity: Granularity, special: float
) -> None:
    spec = dynamic_spec(fields, granularity)
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
    x[3, 5] = special

    faked, back = both_ways(x, spec)

    expected = oracle.bits_of(oracle.fake_quantize(x.numpy(), spec.to_json()))
    assert_array_equal(oracle.bits_of(faked.numpy()), expected)
    assert_array_equal(oracle.bits_of(back.numpy()), expected)
    assert faked[3, 5].isnan()


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_with_static_scales_infinity_saturates_and_nan_stays_nan(name: str) -> None:
    spec, amax = QuantSpec(name, arithmetic="divide"), torch.tensor(1.5)
    x = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, torch.nan])

    faked = fake_quantize(x, [amax], spec)

    ends = torch.tensor([spec.element_type.max, spec.element_type.min]) * (amax / spec.element_type.max)
    assert torch.equal(faked[:4], ends.repeat(2))
    assert faked[4].isnan()


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_a_scalar_is_fake_quantized(name: str) -> None:
    spec = QuantSpec(name, dynamic=True)
    expected = oracle.bits_of(oracle.fake_quantize(1.7, spec.to_json()))
    faked = fake_quantize(torch.tensor(1.7), [], spec)

    assert faked.shape == ()
    assert_array_equal(oracle.bits_of(faked.numpy()), expected)


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3"])
def test_a_scalar_cannot_be_packed(name: str) -> None:
    with pytest.raises(ShapeError, match=r"found shape \(\)"):
        quantize(torch.tensor(1.5), [], QuantSpec(name, dynamic=True))
