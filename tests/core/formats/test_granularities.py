"""Which elements share a scale: shapes, maxima and the way back from blocks, by loops over every element."""

from __future__ import annotations

import itertools
import math

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
from octavo.core.formats.granularity import granularity_to_json, keepdim_shape, unblocked
from oracles import number_formats as oracle

CASES: list[tuple[Granularity, tuple[int, ...], tuple[int, ...]]] = [
    (PerTensor(), (6, 10), ()),
    (PerTensor(), (7,), ()),
    (PerTensor(), (), ()),
    (PerTensor(), (2, 3, 4), ()),
    (PerChannel(), (6, 10), (6,)),
    (PerChannel(1), (6, 10), (10,)),
    (PerChannel(-1), (6, 10), (10,)),
    (PerChannel(-2), (6, 10), (6,)),
    (PerChannel(1), (2, 3, 4), (3,)),
    (PerChannel(-1), (2, 3, 4), (4,)),
    (PerChannel(-2), (2, 3, 4), (3,)),
    (PerChannel(-3), (2, 3, 4), (2,)),
    (PerToken(), (6, 10), (6,)),
    (PerToken(), (2, 3, 4), (2, 3)),
    (PerToken(), (5,), ()),
    (PerBlock(((-1, 4),)), (6, 8), (6, 2)),
    (PerBlock(((-1, 4),)), (6, 10), (6, 3)),
    (PerBlock(((-1, 16),)), (6, 10), (6, 1)),
    (PerBlock(((-1, 1),)), (2, 3), (2, 3)),
    (PerBlock(((-1, 4),)), (2, 3, 9), (2, 3, 3)),
    (PerBlock(((-1, 4),)), (9,), (3,)),
    (PerBlock(((-2, 4),)), (6, 10), (2, 10)),
    (PerBlock(((-1, 4), (-2, 4))), (8, 12), (2, 3)),
    (PerBlock(((-2, 4), (-1, 3))), (6, 10), (2, 4)),
    (PerBlock(((-2, 4), (-1, 3))), (2, 6, 10), (2, 2, 4)),
    (PerBlock(((-3, 2), (-1, 3))), (3, 5, 7), (2, 5, 3)),
    (PerBlock(((-1, 128), (-2, 128))), (6, 10), (1, 1)),
]
EMPTY: list[tuple[Granularity, tuple[int, ...], tuple[int, ...]]] = [
    (PerTensor(), (0, 4), ()),
    (PerChannel(0), (4, 0), (4,)),
    (PerChannel(0), (0, 4), (0,)),
    (PerToken(), (4, 0), (4,)),
    (PerToken(), (2, 0, 3), (2, 0)),
    (PerBlock(((-1, 4),)), (4, 0), (4, 0)),
    (PerBlock(((-1, 4),)), (0, 10), (0, 3)),
    (PerBlock(((-1, 4), (-2, 4))), (0, 0), (0, 0)),
]


def scale_index(granularity: Granularity, index: tuple[int, ...]) -> tuple[int, ...]:
    """Return which scale the element at `index` has, from the words of the docstrings."""
    match granularity:
        case PerTensor():
            return ()
        case PerToken():
            return index[:-1]
        case PerChannel(axis=axis):
            return (index[axis],)
        case PerBlock(sizes=sizes):
            lengths = dict(sizes)
            return tuple(i // lengths.get(d - len(index), 1) for d, i in enumerate(index))


def ramp(shape: tuple[int, ...]) -> torch.Tensor:
    """Return distinct magnitudes of both signs, so that no two blocks can be mistaken for each other."""
    generator = torch.Generator().manual_seed(len(shape))
    values = torch.randperm(math.prod(shape), generator=generator).float() + 1
    return (values * torch.where(values % 2 == 0, 1.0, -1.0)).reshape(shape)


@pytest.mark.parametrize(("granularity", "shape", "scales"), CASES + EMPTY, ids=str)
def test_scale_shape(granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    assert granularity.scale_shape(shape) == scales
    assert granularity.scale_shape(torch.Size(shape)) == scales
    assert oracle.scale_shape(granularity_to_json(granularity), shape) == scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("granularity", "shape", "scales"), CASES, ids=str)
def test_amax_is_the_largest_magnitude_of_the_elements_of_a_scale(
    granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = ramp(shape).to(dtype)
    expected = torch.zeros(scales)
    for index in itertools.product(*map(range, shape)):
        place = scale_index(granularity, index)
        expected[place] = max(expected[place].item(), abs(x[index].item()))

    amax = compute_amax(x, QuantSpec("int8", granularity))

    assert amax.dtype == torch.float32
    assert torch.equal(amax, expected)
    assert_array_equal(
        oracle.block_amax(x.float().numpy(), granularity_to_json(granularity)), expected.numpy()
    )


@pytest.mark.parametrize(("granularity", "shape", "scales"), CASES, ids=str)
def test_scales_spread_over_exactly_their_elements(
    granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    numbers = torch.arange(math.prod(scales), dtype=torch.float32).reshape(scales)
    ones = granularity.blocked(torch.ones(shape))

    spread = unblocked(ones * numbers.reshape(keepdim_shape(granularity, shape)), granularity, shape)

    for index in itertools.product(*map(range, shape)):
        assert spread[index] == numbers[scale_index(granularity, index)]
    of_oracle = oracle.spread(numbers.numpy(), granularity_to_json(granularity), shape)
    assert_array_equal(torch.ones(shape).numpy() * of_oracle, spread.numpy())


@pytest.mark.parametrize(("granularity", "shape", "scales"), CASES + EMPTY, ids=str)
def test_a_blocked_tensor_comes_back(
    granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    x = ramp(shape)

    back = unblocked(granularity.blocked(x), granularity, shape)

    assert torch.equal(back, x)
    assert back.is_contiguous()
