"""fp32 scales: each arithmetic to the last bit, blocks that count as zero, NaN and infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.formats import QuantSpec, element_type
from octavo.core.formats.scales import SMALLEST_AMAX, scales_from_amax, step_from_stored
from oracles import number_formats as oracle

ARITHMETICS = ["multiply", "divide", "divide_native"]


def many_amax() -> torch.Tensor:
    """Return amax over the whole fp32 range, 20 in each binade, with all of its special values but NaN."""
    generator = torch.Generator().manual_seed(1)
    mantissa = 1 + torch.rand(20, 277, generator=generator)
    exponents = torch.arange(-149, 128, dtype=torch.float64)
    values = (mantissa.double() * 2.0**exponents).float().flatten()
    return torch.cat([values, torch.tensor([0.0, -0.0, torch.inf, 3.4028235e38, 2.0**-149, SMALLEST_AMAX])])


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_scales_equal_those_of_the_oracle(name: str, arithmetic: Any) -> None:
    spec, amax = QuantSpec(name, arithmetic=arithmetic), many_amax()
    expected = oracle.scales_from_amax(amax.numpy(), None, spec.to_json())

    scales = scales_from_amax(amax, None, spec)

    assert scales.stored.dtype == scales.step.dtype == torch.float32
    assert_array_equal(oracle.bits_of(scales.stored.numpy()), oracle.bits_of(expected.stored))
    assert_array_equal(oracle.bits_of(scales.step.numpy()), oracle.bits_of(expected.step))
    assert scales.global_scale is None
    assert (scales.inverse is not None) == (arithmetic == "multiply")
    if scales.inverse is not None:
        assert_array_equal(oracle.bits_of(scales.inverse.numpy()), oracle.bits_of(expected.factor))


@pytest.mark.parametrize("name", ["int8", "int4", "uint8", "e2m1"])
def test_divide_rounds_the_exact_quotient_once(name: str) -> None:
    amax = many_amax()
    amax = amax[(amax >= SMALLEST_AMAX) & amax.isfinite()]

    step = scales_from_amax(amax, None, QuantSpec(name, arithmetic="divide")).step

    exact = amax.double() / element_type(name).max  # twice the bits and more: rounding it again is harmless
    assert torch.equal(step, exact.float())


def test_multiply_rounds_once_for_integers_and_twice_for_floats() -> None:
    # 448/10 is a place where 448 · (1/10) rounds differently: both orders are what kernels of the field do.
    amax = torch.tensor([10.0, 11.0, 13.0, 41.0, 47.0])
    integer = scales_from_amax(amax, None, QuantSpec("int8")).inverse
    floating = scales_from_amax(amax, None, QuantSpec("e4m3")).inverse
    assert integer is not None
    assert floating is not None

    assert integer.tolist() == [np.float32(127) / np.float32(a) for a in amax.tolist()]
    reciprocal = [np.float32(1) / np.float32(a) for a in amax.tolist()]
    assert floating.tolist() == [r * np.float32(448) for r in reciprocal]
    assert floating.tolist() != [np.float32(448) / np.float32(a) for a in amax.tolist()]


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", ["int8", "e4m3", "e5m2"])
def test_a_zero_block_has_scale_one(name: str, arithmetic: Any) -> None:
    below = torch.tensor([0.0, -0.0, 2.0**-149, 2.0**-111, 2.0**-110 * (1 - 2.0**-24)])

    scales = scales_from_amax(below, None, QuantSpec(name, arithmetic=arithmetic))

    assert scales.step.tolist() == [1.0] * 5
    assert scales.inverse is None or scales.inverse.tolist() == [1.0] * 5


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", ["int3", "int8", "e4m3", "e5m2", "uint8"])
def test_every_amax_that_counts_has_finite_positive_scales(name: str, arithmetic: Any) -> None:
    ends = torch.tensor([2.0**-110, 3.4028235e38])

    scales = scales_from_amax(ends, None, QuantSpec(name, arithmetic=arithmetic))

    for factor in (scales.step, scales.inverse):
        assert factor is None or (factor.isfinite() & (factor > 0)).all()


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_nan_stays_nan_and_infinity_makes_an_infinite_step(arithmetic: Any) -> None:
    amax = torch.tensor([torch.nan, torch.inf])

    scales = scales_from_amax(amax, None, QuantSpec("int8", arithmetic=arithmetic))

    assert scales.step[0].isnan()
    assert scales.step[1].item() == torch.inf


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_step_of_stored_scales_is_the_step_of_quantizing(arithmetic: Any) -> None:
    spec = QuantSpec("int8", arithmetic=arithmetic)
    scales = scales_from_amax(many_amax(), None, spec)

    assert torch.equal(step_from_stored(scales.stored, scales.global_scale, spec), scales.step)
