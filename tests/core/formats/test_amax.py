"""Largest magnitudes where they are no plain maximum: NaN, infinity, zeros, nothing to reduce."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.formats import (
    Granularity,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantSpec,
    compute_amax,
)
from octavo.core.formats.granularity import granularity_to_json, keepdim_shape
from oracles import number_formats as oracle

GRANULARITIES: list[Granularity] = [
    PerTensor(),
    PerChannel(0),
    PerChannel(-1),
    PerToken(),
    PerBlock(((-1, 4),)),
    PerBlock(((-1, 4), (-2, 4))),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EMPTY: list[tuple[Granularity, tuple[int, ...], tuple[int, ...]]] = [
    (PerTensor(), (0, 4), ()),
    (PerTensor(), (0,), ()),
    (PerChannel(0), (4, 0), (4,)),
    (PerChannel(0), (0, 4), (0,)),
    (PerToken(), (4, 0), (4,)),
    (PerToken(), (2, 0, 3), (2, 0)),
    (PerBlock(((-1, 4),)), (4, 0), (4, 0)),
    (PerBlock(((-1, 4),)), (0, 10), (0, 3)),
    (PerBlock(((-1, 4), (-2, 4))), (0, 0), (0, 0)),
]


def amax_of(x: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    return compute_amax(x, QuantSpec("int8", granularity))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("granularity", "shape", "scales"), EMPTY, ids=str)
def test_empty_tensors_have_maxima_of_zero(
    granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...], dtype: torch.dtype
) -> None:
    amax = amax_of(torch.zeros(shape, dtype=dtype), granularity)

    assert amax.dtype == torch.float32
    assert torch.equal(amax, torch.zeros(scales))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_nan_and_infinity_reach_exactly_their_block(
    granularity: Granularity, special: float, dtype: torch.dtype
) -> None:
    x = torch.randn(9, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[5, 6] = special

    amax = amax_of(x, granularity)

    expected = oracle.block_amax(x.float().numpy(), granularity_to_json(granularity))
    assert_array_equal(oracle.bits_of(amax.numpy()), oracle.bits_of(expected))
    assert amax.isfinite().sum() == amax.numel() - 1


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_maxima_of_a_strided_tensor_are_those_of_its_copy(granularity: Granularity) -> None:
    x = torch.randn(10, 9, generator=torch.Generator().manual_seed(1)).t()

    assert torch.equal(amax_of(x, granularity), amax_of(x.contiguous(), granularity))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_have_a_maximum_of_zero(zero: float, granularity: Granularity) -> None:
    amax = amax_of(torch.full((8, 8), zero), granularity)

    assert torch.equal(amax, torch.zeros_like(amax))


def test_the_maximum_of_a_tensor_of_zeros_is_no_negative_zero() -> None:
    assert not amax_of(torch.zeros(33), PerTensor()).signbit()


def test_a_vector_by_channel_has_one_scale_for_each_element() -> None:
    x = torch.tensor([1.0, -3.0, 2.0, 0.0, -5.0])
    granularity = PerChannel(0)

    assert granularity.scale_shape(x.shape) == (5,)
    assert keepdim_shape(granularity, x.shape) == (5,)
    assert oracle.block_amax(x.numpy(), granularity_to_json(granularity)).tolist() == [1, 3, 2, 0, 5]


def test_amax_of_a_vector_by_channel_is_its_magnitudes() -> None:
    assert amax_of(torch.tensor([1.0, -3.0, 2.0, 0.0, -5.0]), PerChannel(0)).tolist() == [1, 3, 2, 0, 5]
