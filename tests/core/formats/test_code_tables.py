"""Every code of every element type, against the oracle's tables and against ml_dtypes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.formats import element_type
from octavo.core.formats.rounding import decode, encode, round_to_grid
from oracles import number_formats as oracle

ML_DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int2": ml_dtypes.int2,
    "uint2": ml_dtypes.uint2,
}
TIES = [(name, "even") for name in oracle.ELEMENTS] + [(name, "toward_zero") for name in oracle.FLOATS]


def all_codes(name: str) -> torch.Tensor:
    return torch.arange(2 ** element_type(name).bits, dtype=torch.int32).to(torch.uint8)


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_every_code_decodes_to_the_value_of_its_bit_fields(name: str) -> None:
    values = decode(all_codes(name), element_type(name))

    assert values.dtype == torch.float32
    assert_array_equal(oracle.bits_of(values.numpy()), oracle.bits_of(oracle.table(name).decoded))


@pytest.mark.parametrize(("name", "dtype"), ML_DTYPES.items())
def test_every_code_decodes_as_in_ml_dtypes(name: str, dtype: Any) -> None:
    values = decode(all_codes(name), element_type(name))

    expected = all_codes(name).numpy().view(dtype).astype(np.float32)
    assert_array_equal(oracle.bits_of(values.numpy()), oracle.bits_of(expected))


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_every_code_of_a_number_survives_decoding_and_encoding(name: str) -> None:
    codes = all_codes(name)
    values = decode(codes, element_type(name))

    is_number = values.isfinite()
    assert torch.equal(encode(values, element_type(name))[is_number], codes[is_number])


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_every_grid_value_encodes_to_the_code_of_the_oracle(name: str) -> None:
    values = torch.tensor(oracle.grid_values(name), dtype=torch.float32)

    codes = encode(values, element_type(name))

    assert codes.dtype == torch.uint8
    assert_array_equal(codes.numpy(), oracle.table(name).codes)


@pytest.mark.parametrize(("name", "dtype"), ML_DTYPES.items())
def test_every_grid_value_encodes_as_in_ml_dtypes(name: str, dtype: Any) -> None:
    values = torch.tensor(oracle.grid_values(name), dtype=torch.float32)

    expected = values.numpy().astype(dtype).view(np.uint8)
    assert_array_equal(encode(values, element_type(name)).numpy(), expected)


@pytest.mark.parametrize(("name", "ties"), TIES)
def test_every_nonzero_grid_value_rounds_to_itself(name: str, ties: Any) -> None:
    values = torch.tensor(oracle.grid_values(name), dtype=torch.float32)
    values = values[values != 0]

    assert torch.equal(round_to_grid(values, element_type(name), ties), values)


@pytest.mark.parametrize("name", oracle.FLOATS)
def test_negative_zero_has_a_code_of_its_own_in_floats(name: str) -> None:
    element = element_type(name)

    assert encode(torch.tensor([0.0, -0.0]), element).tolist() == [0, 2 ** (element.bits - 1)]


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_nan_becomes_a_nan_code_where_there_is_one_and_else_zero(name: str) -> None:
    element = element_type(name)
    codes = encode(torch.full((33,), torch.nan), element)  # 33: vector lanes and a remainder

    if name in ("e4m3", "e5m2"):
        assert decode(codes, element).isnan().all()
    else:
        assert codes.tolist() == [0] * 33


@pytest.mark.parametrize("name", ["e2m1", "e3m2", "e2m3"])
def test_negative_nan_becomes_code_zero_in_formats_without_nan(name: str) -> None:
    negative_nan = torch.tensor([-torch.nan])
    assert negative_nan.view(torch.int32).item() < 0  # the sign bit is set

    assert encode(negative_nan, element_type(name)).tolist() == [0]
