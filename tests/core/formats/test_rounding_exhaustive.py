"""Rounding wherever it can go wrong: midpoints and their fp32 neighbours, zeros, ends of the range."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from octavo.core.formats import element_type
from octavo.core.formats.rounding import encode, round_to_grid
from oracles import number_formats as oracle

TIES = [(name, "even") for name in oracle.ELEMENTS] + [(name, "toward_zero") for name in oracle.FLOATS]
ML_FLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38]
SUBNORMAL = [2.0**-149, -(2.0**-149), 2.0**-140, -(2.0**-127), 2.0**-126, 1.1754942e-38]


def boundaries(name: str) -> NDArray[np.float32]:
    """Return every grid value and midpoint with both fp32 neighbours, and what lies beyond the range."""
    values = oracle.grid_values(name)
    gap = values[-1] - values[-2]
    beyond = values[-1] + gap * np.array([0.25, 0.5, 0.75, 1.0, 2.0, 1000.0])
    points = np.concatenate([values, (values[:-1] + values[1:]) / 2, beyond, -beyond])
    exact = points.astype(np.float32)
    assert_array_equal(exact.astype(np.float64), points)  # else these would not be ties
    up, down = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))
    return np.concatenate([exact, up, down, np.array(SPECIAL + SUBNORMAL, dtype=np.float32)])


def assert_rounds_like_the_oracle(x: NDArray[np.float32], name: str, ties: Any) -> None:
    element = element_type(name)
    expected = oracle.round_nearest(x, name, ties)

    rounded = round_to_grid(torch.from_numpy(x), element, ties)

    assert rounded.dtype == torch.float32
    assert_array_equal(oracle.bits_of(rounded.numpy()), oracle.bits_of(expected))
    is_number = ~np.isnan(x)
    assert_array_equal(encode(rounded, element).numpy()[is_number], oracle.encode(expected, name)[is_number])


@pytest.mark.parametrize(("name", "ties"), TIES)
def test_midpoints_neighbours_and_ends(name: str, ties: str) -> None:
    assert_rounds_like_the_oracle(boundaries(name), name, ties)


@pytest.mark.parametrize(("name", "ties"), TIES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_float(dtype: Any, name: str, ties: str) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        assert_rounds_like_the_oracle(x.astype(np.float32), name, ties)


@pytest.mark.parametrize(("name", "ties"), TIES)
def test_values_round_alone_as_they_do_in_a_vector(name: str, ties: Any) -> None:
    # Vectorised loops and their scalar remainders are different code in torch.
    x = torch.from_numpy(boundaries(name)[::7].copy())
    element = element_type(name)

    together = round_to_grid(x, element, ties)
    alone = torch.stack([round_to_grid(value, element, ties) for value in x])

    assert_array_equal(oracle.bits_of(together.numpy()), oracle.bits_of(alone.numpy()))


@pytest.mark.parametrize(("name", "dtype"), ML_FLOATS.items())
def test_rounding_and_codes_agree_with_ml_dtypes(name: str, dtype: Any) -> None:
    # On purpose different, and left out: beyond the range octavo saturates, where ml_dtypes' 8-bit floats
    # turn to NaN or infinity; sub-byte floats of octavo turn an exact −0 into +0, those of ml_dtypes keep it
    # (and have a code for NaN, 0b100…, where octavo has 0).
    x = boundaries(name)
    element = element_type(name)
    x = x[np.abs(x) <= element.max]
    if element.bits < 8:
        x = np.where(x == 0, np.float32(0), x)

    codes = encode(round_to_grid(torch.from_numpy(x), element), element)

    assert_array_equal(codes.numpy(), x.astype(dtype).view(np.uint8))


@pytest.mark.parametrize(("name", "ties"), TIES)
def test_nan_stays_nan_and_infinity_becomes_the_end_of_the_range(name: str, ties: Any) -> None:
    element = element_type(name)

    rounded = round_to_grid(torch.tensor([torch.nan, torch.inf, -torch.inf]), element, ties)

    assert rounded[0].isnan()
    assert rounded[1:].tolist() == [element.max, element.min]


def test_e2m1_thresholds_and_ties_are_those_of_nvfp4() -> None:
    # The table of the format's own documentation, literally, as a witness that is not the oracle's search.
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    element = element_type("e2m1")

    assert round_to_grid(ties, element).tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert round_to_grid(ties, element, "toward_zero").tolist() == [0, 0.5, 1, 1.5, 2, 3, 4]

    zeros = torch.tensor([0.0, -0.0, 0.1, -0.1])
    assert encode(round_to_grid(zeros, element), element).tolist() == [0, 0, 0, 8]
    assert encode(round_to_grid(zeros, element, "toward_zero"), element).tolist() == [8, 8, 0, 8]
