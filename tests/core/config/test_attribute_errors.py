"""Attributes that are unknown, of the wrong type, or contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo
from helpers.config_rules import weights
from octavo.core.config.attributes import parse_attributes
from octavo.core.errors import ConfigError, OctavoError, UnsupportedError

# attributes: what the message says
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"axis": 0, "block_sizes": {-1: 16}}, "axis=0 excludes block_sizes={-1: 16}; give one of them"),
    ({"num_bits": 9}, "unknown element type 'int9'; known: .*int2 to int8"),
    ({"num_bits": "fp8"}, "unknown element type 'fp8'; known: e4m3, e5m2"),
    (
        {"block_sizes": {-1: 16, "scale_bits": (5, 2)}},
        r"scale_bits=\(5, 2\); expected \(4, 3\) for E4M3 or \(8, 0\)",
    ),
    (
        {"block_sizes": {-1: 16, "scale_bit": (4, 3)}},
        "option 'scale_bit' of block_sizes. Did you mean 'scale_bits'",
    ),
    ({"block_sizes": {-1: 16.5}}, "block_sizes={-1: 16.5}: lengths must be integers"),
    ({"block_sizes": {-1: None, -2: 16}}, "lengths must be integers, or None for {-1: None}"),
    ({"block_sizes": {"type": "dynamic"}}, "block_sizes={'type': 'dynamic'}: lengths must be"),
    ({"block_sizes": {0: 16}}, "block sizes {0: 16}: axes must be negative and lengths positive"),
    ({"block_sizes": {-1: 0}}, "block sizes {-1: 0}: axes must be negative and lengths positive"),
    (
        {"block_sizes": {-1: 16, "scale_bits": (8, 0)}},
        "e8m0 scales are computed from the values at hand: use type='dynamic'",
    ),
    (
        {"block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (8, 0), "scale_rounding": "up"}},
        "scale_rounding='up'; expected one of ceil, even, floor",
    ),
]


@pytest.mark.parametrize(("attributes", "message"), CONTRADICTIONS, ids=[str(a) for a, _ in CONTRADICTIONS])
def test_contradictions_name_the_quantizer_and_the_values(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^up.weight_quantizer: .*{message}"):
        octavo.plan(nn.ModuleDict({"up": nn.Linear(16, 16)}), weights(attributes))


def test_two_constants() -> None:
    attributes = {"use_constant_amax": True, "constant_amax": 3.5}

    with pytest.raises(
        ConfigError, match=r"^up\.weight_quantizer: use_constant_amax excludes constant_amax=3\.5; give one"
    ):
        octavo.plan(nn.ModuleDict({"up": nn.Linear(16, 16)}), weights(attributes))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_bit": 4}, "unknown quantizer attribute 'num_bit'. Did you mean 'num_bits'?"),
        ({"blocksizes": {-1: 16}}, "unknown quantizer attribute 'blocksizes'. Did you mean 'block_sizes'?"),
        ({"enabled": True}, "unknown quantizer attribute 'enabled'. Did you mean 'enable'?"),
        ({"xyzzy": 1}, "unknown quantizer attribute 'xyzzy'."),
        ({"type": "dynamik"}, "type='dynamik': Input should be 'static' or 'dynamic'"),
        ({"axis": "rows"}, "axis"),
        ({"enable": "perhaps"}, "enable='perhaps'"),
        ({"constant_amax": "big"}, "constant_amax='big'"),
    ],
)
def test_unknown_names_and_wrong_types(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_attributes(attributes, "entry 3")

    assert str(caught.value).startswith("entry 3: ")
    assert message in str(caught.value)


def test_several_axes() -> None:
    with pytest.raises(UnsupportedError, match=r"axis=\(0, 1\): one axis .* is available, several are not"):
        parse_attributes({"axis": (0, 1)}, "here").to_spec()


@pytest.mark.parametrize("pair", [(1, 2), (0, 3), (3, 0), (8, 0)])
def test_floats_that_are_no_element_type(pair: tuple[int, int]) -> None:
    message = rf"num_bits=\({pair[0]}, {pair[1]}\): the \(exponent, mantissa\) pairs are \(4, 3\), \(5, 2\), \(2, 1\)"
    with pytest.raises(UnsupportedError, match=message):
        parse_attributes({"num_bits": pair}, "here").to_spec()


# Values that mean nothing, or exclude another attribute.
IGNORED: list[tuple[dict[str, Any], str]] = [
    ({"block_sizes": {-1: 16, "type": "dynamicc"}}, "dynamicc"),
    ({"type": "dynamic", "block_sizes": {-1: 16, "type": "static"}}, "static"),
    ({"num_bits": (4, 3), "narrow_range": True}, "narrow_range"),
    ({"num_bits": (4, 3), "unsigned": True}, "unsigned"),
    ({"num_bits": "int8", "unsigned": True}, "unsigned"),
    ({"constant_amax": -1.0}, "-1.0"),
    ({"constant_amax": 0.0}, "0.0"),
    ({"constant_amax": float("nan")}, "nan"),
    ({"type": "dynamic", "constant_amax": 4.0}, "constant_amax"),
]


@pytest.mark.parametrize(("attributes", "value"), IGNORED, ids=[str(a) for a, _ in IGNORED])
def test_nothing_is_silently_ignored(attributes: dict[str, Any], value: str) -> None:
    with pytest.raises(OctavoError, match=value):
        octavo.plan(nn.Sequential(nn.Linear(16, 16)), weights(attributes))


def test_a_constant_for_a_dynamic_quantizer_does_not_crash() -> None:
    config = weights({"type": "dynamic", "constant_amax": 4.0})

    with pytest.raises(OctavoError, match="constant_amax"):
        octavo.quantize(nn.Sequential(nn.Linear(16, 16)), config, quiet=True)
