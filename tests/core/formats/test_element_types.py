"""Element types: limits against the oracle's tables, and the message for a name that does not exist."""

from __future__ import annotations

import pytest

from octavo.core.errors import ConfigError
from octavo.core.formats import ElementType, element_type
from oracles import number_formats as oracle

# name -> (bits, exponent bits, mantissa bits, bias, largest) as the OCP MX specification v1.0 prints them
OCP = {
    "e4m3": (8, 4, 3, 7, 448.0),
    "e5m2": (8, 5, 2, 15, 57344.0),
    "e3m2": (6, 3, 2, 3, 28.0),
    "e2m3": (6, 2, 3, 1, 7.5),
    "e2m1": (4, 2, 1, 1, 6.0),
}


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_range_and_width_are_those_of_the_table_of_codes(name: str) -> None:
    element = element_type(name)

    assert element.name == name
    assert element.bits == oracle.width(name)
    assert [element.min, element.max] == oracle.grid_values(name)[[0, -1]].tolist()
    assert element.is_float == (name in oracle.FLOATS)


@pytest.mark.parametrize("name", OCP)
def test_floats_are_those_of_the_ocp_specification(name: str) -> None:
    bits, exponent_bits, mantissa_bits, bias, largest = OCP[name]

    expected = ElementType(name, bits, -largest, largest, exponent_bits, mantissa_bits, bias)
    assert element_type(name) == expected


@pytest.mark.parametrize("name", OCP)
def test_smallest_exponent_is_that_of_the_smallest_normal(name: str) -> None:
    element = element_type(name)
    first_normal = oracle.code_value(name, 2**element.mantissa_bits)

    assert 2.0**element.smallest_exponent == first_normal


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int8", (8, -128.0, 127.0)),
        ("int8_narrow", (8, -127.0, 127.0)),
        ("uint8", (8, 0.0, 255.0)),
        ("int4", (4, -8.0, 7.0)),
        ("int2_narrow", (2, -1.0, 1.0)),
        ("uint2", (2, 0.0, 3.0)),
    ],
)
def test_integers_have_the_range_of_twos_complement(name: str, expected: tuple[int, float, float]) -> None:
    element = element_type(name)

    assert (element.bits, element.min, element.max) == expected
    assert (element.exponent_bits, element.mantissa_bits, element.bias) == (0, 0, 0)


@pytest.mark.parametrize("name", ["int1", "int9", "int16", "INT8", "int8_wide", "e4m4", "fp8", "", "int8 "])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        element_type(name)

    message = str(error.value)
    assert f"unknown element type {name!r}" in message
    for known in ("e4m3, e5m2, e2m1, e3m2, e2m3", "int2 to int8", "uint2 to uint8", "_narrow"):
        assert known in message


@pytest.mark.parametrize(("name", "meant"), [("e4m3fn", "e4m3"), ("E2M1", "e2m1"), ("int88", "int8")])
def test_an_unknown_name_that_looks_like_a_known_one_is_asked_back(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        element_type(name)

    assert str(error.value).endswith(f" Did you mean {meant!r}?")


def test_an_unknown_name_like_no_other_is_not_asked_back() -> None:
    with pytest.raises(ConfigError) as error:
        element_type("posit")

    assert "Did you mean" not in str(error.value)
