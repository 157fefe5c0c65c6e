"""What rounding to any grid must be, for values that hypothesis picks: nearest, monotone, odd, final."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.formats import ElementType, element_type
from octavo.core.formats.rounding import decode, encode, round_to_grid
from oracles import number_formats as oracle

EXACT = settings(derandomize=True, deadline=None, max_examples=250)
TIES = [(name, "even") for name in oracle.ELEMENTS] + [(name, "toward_zero") for name in oracle.FLOATS]

ways = st.sampled_from(TIES)
anywhere = st.floats(width=32, allow_nan=False)
near = st.floats(-600, 600, width=32) | st.integers(-600, 600).map(lambda i: i / 16)
numbers = st.lists(near | anywhere, min_size=1, max_size=40)


def rounded(values: list[float], way: tuple[str, Any]) -> tuple[torch.Tensor, torch.Tensor, ElementType]:
    x, element = torch.tensor(values, dtype=torch.float32), element_type(way[0])
    return x, round_to_grid(x, element, way[1]), element


@EXACT
@given(values=numbers, way=ways)
def test_no_value_of_the_format_is_nearer(values: list[float], way: tuple[str, Any]) -> None:
    x, result, element = rounded(values, way)
    inside = x.clamp(element.min, element.max).double().numpy()[:, None]

    distances = np.abs(inside - oracle.grid_values(way[0]))

    assert (np.abs(inside[:, 0] - result.double().numpy()) <= distances.min(1)).all()


@EXACT
@given(values=numbers, way=ways)
def test_every_result_is_a_value_of_the_format(values: list[float], way: tuple[str, Any]) -> None:
    _, result, _ = rounded(values, way)

    assert np.isin(result.numpy(), oracle.grid_values(way[0])).all()


@EXACT
@given(values=numbers, way=ways)
def test_rounding_is_monotone(values: list[float], way: tuple[str, Any]) -> None:
    _, result, _ = rounded(sorted(values), way)

    assert (result[1:] >= result[:-1]).all()


@EXACT
@given(values=numbers, way=ways)
def test_rounding_twice_is_rounding_once(values: list[float], way: tuple[str, Any]) -> None:
    _, once, element = rounded(values, way)

    # Values, not bits: what rounds to zero keeps its sign, and an exact zero then has the sign of the rule.
    assert torch.equal(round_to_grid(once, element, way[1]), once)


@EXACT
@given(values=numbers, way=ways)
def test_rounding_is_odd_where_the_range_is_symmetric(values: list[float], way: tuple[str, Any]) -> None:
    x, result, element = rounded(values, way)
    mirrored = round_to_grid(-x, element, way[1])
    inside = x.abs() <= element.max if element.min < 0 else x == 0
    symmetric = inside | (element.min == -element.max)

    assert torch.equal(mirrored[symmetric], -result[symmetric])
    nonzero = (x != 0) & element.is_float
    assert torch.equal(mirrored.signbit()[nonzero], ~result.signbit()[nonzero])


@EXACT
@given(values=numbers, way=ways)
def test_codes_come_back_with_the_sign_of_zero(values: list[float], way: tuple[str, Any]) -> None:
    _, result, element = rounded(values, way)

    back = decode(encode(result, element), element)

    assert (oracle.bits_of(back.numpy()) == oracle.bits_of(result.numpy())).all()


@EXACT
@given(values=numbers, name=st.sampled_from(oracle.FLOATS))
def test_tie_rules_differ_by_one_step_at_most_and_only_away_from_zero(values: list[float], name: str) -> None:
    x, even, element = rounded(values, (name, "even"))
    toward_zero = round_to_grid(x, element, "toward_zero")
    magnitudes = oracle.grid_values(name)[oracle.grid_values(name) >= 0]

    places = [np.searchsorted(magnitudes, result.abs().numpy()) for result in (even, toward_zero)]

    assert np.isin(places[0] - places[1], [0, 1]).all()
