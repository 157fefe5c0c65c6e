"""Specs that contradict themselves: each message names the value found and what to write instead."""

from __future__ import annotations

import re
from typing import Any

import pytest

from octavo.core.errors import ConfigError
from octavo.core.formats import PerBlock, PerChannel, QuantSpec

BLOCK = PerBlock(((-1, 16),))
TWO_LEVELS = (
    "e4m3 scales have a second level (global_max; NVFP4 uses 2688) and the other scale types have none"
)

ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"element": "int9"}, "unknown element type 'int9'"),
    ({"element": "fp8"}, "unknown element type 'fp8'; known: e4m3, e5m2, e2m1, e3m2, e2m3, int2 to int8"),
    ({"scale": "float16"}, "scale='float16'; expected one of float32, e4m3, e8m0"),
    ({"arithmetic": "shift"}, "arithmetic='shift'; expected one of multiply, divide, divide_native"),
    ({"ties": "up"}, "ties='up'; expected one of even, toward_zero"),
    ({"ties": None}, "ties=None; expected one of even, toward_zero"),
    ({"scale": "e8m0", "scale_rounding": "up"}, "scale_rounding='up'; expected one of ceil, even, floor"),
    ({"scale_rounding": "even"}, "scale_rounding='even' is for e8m0 scales, found float32"),
    ({"scale": "e4m3"}, f"scale='e4m3' with global_max=None: {TWO_LEVELS}"),
    ({"global_max": 2688.0}, f"scale='float32' with global_max=2688.0: {TWO_LEVELS}"),
    (
        {"scale": "e8m0", "dynamic": True, "global_max": 448.0},
        f"scale='e8m0' with global_max=448.0: {TWO_LEVELS}",
    ),
    (
        {"element": "int4", "ties": "toward_zero"},
        "ties='toward_zero' is for floating-point codes, found int4",
    ),
    (
        {"element": "uint8", "ties": "toward_zero"},
        "ties='toward_zero' is for floating-point codes, found uint8",
    ),
]


@pytest.mark.parametrize(("fields", "message"), ERRORS, ids=str)
def test_a_contradiction_is_named_with_its_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        QuantSpec(**{"element": "e2m1", "granularity": BLOCK, **fields})


@pytest.mark.parametrize(("fields", "message"), ERRORS, ids=str)
def test_json_with_a_contradiction_is_the_same_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        QuantSpec.from_json({"element": "e2m1", **fields})


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("arithmetics", "arithmetic"),
        ("tie", "ties"),
        ("elements", "element"),
        ("global_maximum", "global_max"),
    ],
)
def test_an_unknown_field_is_asked_back(field: str, meant: str) -> None:
    message = f"unknown field {field!r} of QuantSpec. Did you mean {meant!r}?"

    with pytest.raises(ConfigError, match=re.escape(message)):
        QuantSpec.from_json({"element": "int8", field: "even"})


def test_an_unknown_field_like_no_other() -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'zzz' of QuantSpec\.$"):
        QuantSpec.from_json({"element": "int8", "zzz": 1})


@pytest.mark.parametrize("granularity", [{"kind": "row"}, {"kind": "channel"}, {}], ids=str)
def test_json_with_an_unknown_granularity(granularity: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"granularity {granularity!r} is not one of")):
        QuantSpec.from_json({"element": "int8", "granularity": granularity})


def test_json_without_element_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        QuantSpec.from_json({"scale": "float32"})


@pytest.mark.parametrize("global_max", [0.0, -2688.0, float("nan"), float("inf")])
def test_global_max_is_a_positive_number(global_max: float) -> None:
    with pytest.raises(ConfigError):
        QuantSpec("e2m1", BLOCK, "e4m3", global_max)


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, ("amax",)),
        ({"dynamic": True}, ()),
        ({"scale": "e8m0", "dynamic": True}, ()),
        ({"scale": "e4m3", "global_max": 2688.0}, ("amax", "global_amax")),
        ({"scale": "e4m3", "global_max": 2688.0, "dynamic": True}, ("global_amax",)),
    ],
    ids=str,
)
def test_state_names_what_has_to_be_calibrated(fields: dict[str, Any], state: tuple[str, ...]) -> None:
    assert QuantSpec("e2m1", BLOCK, **fields).state == state


@pytest.mark.parametrize(
    ("granularity", "shape"), [(BLOCK, (6, 3)), (PerChannel(0), (6,)), (PerChannel(1), (40,))]
)
def test_state_shapes(granularity: Any, shape: tuple[int, ...]) -> None:
    spec = QuantSpec("int8", granularity)

    assert spec.state_shape("amax", (6, 40)) == shape
    assert spec.state_shape("global_amax", (6, 40)) == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["e4m3"], "a QuantSpec is a dict of its fields, found ['e4m3']"),
        ({"element": 5}, "element=5 of QuantSpec; expected str"),
        ({"element": "int8", "global_max": "x"}, "global_max='x' of QuantSpec; expected float"),
        ({"element": "int8", "dynamic": "no"}, "dynamic='no' of QuantSpec; expected bool"),
        ({"element": "int8", "granularity": "tensor"}, "granularity 'tensor' is not one of"),
        ({"element": "int8", "scale": ["e4m3"]}, "scale=['e4m3']; expected one of"),
    ],
    ids=str,
)
def test_json_of_other_types(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        QuantSpec.from_json(data)
