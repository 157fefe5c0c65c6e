"""Power-of-two scales: the exponent around every power of two, its clamps, and what has no scale."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.formats import PerBlock, QuantSpec, element_type
from octavo.core.formats.scales import decode_e8m0, scales_from_amax, step_from_stored
from oracles import number_formats as oracle

ELEMENTS = ["e4m3", "e5m2", "e2m1", "e3m2", "e2m3", "int8", "int8_narrow", "int4", "int2", "uint8"]


def mx(element: str) -> QuantSpec:
    return QuantSpec(element, PerBlock(((-1, 32),)), "e8m0", dynamic=True)


def around_powers_of_two(largest: float) -> torch.Tensor:
    """Return largest · 2^k with both fp32 neighbours, wherever the quotient amax/largest is a normal fp32."""
    exact = torch.tensor([largest * 2.0**k for k in range(-125, 120)], dtype=torch.float32)
    up, down = exact.nextafter(torch.tensor(torch.inf)), exact.nextafter(torch.tensor(0.0))
    amax = torch.cat([exact, up, down, exact * 1.5, exact * 1.9999999])
    return amax[amax.isfinite()]


@pytest.mark.parametrize("name", ELEMENTS)
def test_exponent_is_the_smallest_under_which_amax_does_not_saturate(name: str) -> None:
    largest = element_type(name).max
    amax = around_powers_of_two(largest)

    stored = scales_from_amax(amax, None, mx(name)).stored

    for value, biased in zip(amax.tolist(), stored.tolist(), strict=True):
        reach = Fraction(largest) * Fraction(2) ** (biased - 127)
        assert reach / 2 < Fraction(value) <= reach, (value, biased)


@pytest.mark.parametrize("name", ELEMENTS)
def test_scales_equal_those_of_the_oracle(name: str) -> None:
    amax = around_powers_of_two(element_type(name).max)
    expected = oracle.scales_from_amax(amax.numpy(), None, mx(name).to_json())

    scales = scales_from_amax(amax, None, mx(name))

    assert scales.stored.dtype == torch.uint8
    assert_array_equal(scales.stored.numpy(), expected.stored)
    assert_array_equal(oracle.bits_of(scales.step.numpy()), oracle.bits_of(expected.step))
    assert scales.global_scale is None
    assert scales.inverse is None


@pytest.mark.parametrize("name", ELEMENTS)
def test_a_zero_block_has_the_smallest_exponent(name: str) -> None:
    scales = scales_from_amax(torch.tensor([0.0, -0.0]), None, mx(name))

    assert scales.stored.tolist() == [0, 0]
    assert scales.step.tolist() == [2.0**-127] * 2


@pytest.mark.parametrize("name", ELEMENTS)
def test_a_block_too_small_for_the_smallest_exponent_takes_it(name: str) -> None:
    largest = element_type(name).max
    amax = torch.tensor([largest * 2.0**-127, largest * 2.0**-128, largest * 2.0**-149])

    assert scales_from_amax(amax, None, mx(name)).stored.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ELEMENTS)
def test_nan_and_infinity_have_the_nan_exponent(name: str) -> None:
    scales = scales_from_amax(torch.tensor([torch.nan, torch.inf, 1.0]), None, mx(name))

    assert scales.stored[:2].tolist() == [255, 255]
    assert scales.step.isnan().tolist() == [True, True, False]


def test_exponents_are_clamped_to_the_largest_number() -> None:
    # int2's largest code is 1: a scale that does not saturate would be 2^128, which e8m0 does not have.
    largest = torch.tensor([3.4028235e38, 2.0**127])

    assert scales_from_amax(largest, None, mx("int2")).stored.tolist() == [254, 254]
    assert scales_from_amax(largest[1:].nextafter(torch.tensor(0.0)), None, mx("int2")).stored.item() == 254
    assert scales_from_amax(torch.tensor(2.0**126), None, mx("int2")).stored.item() == 253


def test_every_stored_exponent_decodes_as_in_ml_dtypes() -> None:
    stored = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    expected = stored.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)

    values = decode_e8m0(stored)

    assert values.dtype == torch.float32
    assert_array_equal(oracle.bits_of(values.numpy()), oracle.bits_of(expected))
    assert_array_equal(
        oracle.bits_of(step_from_stored(stored, None, mx("e4m3")).numpy()), oracle.bits_of(expected)
    )


def test_one_exponent_decodes_as_it_does_in_a_vector() -> None:
    stored = torch.arange(255, dtype=torch.int32).to(torch.uint8)

    assert decode_e8m0(stored).tolist() == [decode_e8m0(one).item() for one in stored]


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e3m2", "int8"])
def test_a_block_just_above_the_reach_of_the_smallest_exponent_takes_the_next(name: str) -> None:
    reach = torch.tensor(element_type(name).max * 2.0**-127)

    assert scales_from_amax(reach, None, mx(name)).stored.item() == 0
    assert scales_from_amax(reach.nextafter(torch.tensor(1.0)), None, mx(name)).stored.item() == 1


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "e3m2", "int8"])
def test_the_smallest_numbers_take_the_smallest_exponent(name: str) -> None:
    assert scales_from_amax(torch.tensor([2.0**-149]), None, mx(name)).stored.tolist() == [0]
