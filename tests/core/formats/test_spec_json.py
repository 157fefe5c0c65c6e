"""QuantSpec as JSON: every field both ways, defaults, and keys that stand for specs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest

from octavo.core.formats import (
    Granularity,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantSpec,
    chain_key,
    parse_chain,
)
from octavo.core.formats.granularity import granularity_from_json, granularity_to_json

GRANULARITIES: list[tuple[Granularity, dict[str, Any]]] = [
    (PerTensor(), {"kind": "tensor"}),
    (PerToken(), {"kind": "token"}),
    (PerChannel(), {"kind": "channel", "axis": 0}),
    (PerChannel(-2), {"kind": "channel", "axis": -2}),
    (PerBlock(((-1, 16),)), {"kind": "block", "sizes": {"-1": 16}}),
    (PerBlock(((-2, 4), (-1, 128))), {"kind": "block", "sizes": {"-1": 128, "-2": 4}}),
]
NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)


def many_specs() -> list[QuantSpec]:
    """Return every combination of fields that is allowed, for a few elements."""
    scales = [
        {"scale": "float32", "dynamic": False},
        {"scale": "float32", "dynamic": True},
        {"scale": "e4m3", "global_max": 2688.0, "dynamic": False},
        {"scale": "e4m3", "global_max": 448.0, "dynamic": True},
        {"scale": "e8m0", "dynamic": True},
    ]
    elements = [("int8", "even"), ("uint3_narrow", "even"), ("e2m1", "even"), ("e2m1", "toward_zero")]
    return [
        QuantSpec(element, granularity, arithmetic=arithmetic, ties=ties, **scale)
        for (element, ties), (granularity, _), scale, arithmetic in itertools.product(
            elements, GRANULARITIES, scales, ["multiply", "divide", "divide_native"]
        )
    ]


@pytest.mark.parametrize(("granularity", "data"), GRANULARITIES, ids=str)
def test_granularities_are_these_dicts(granularity: Granularity, data: dict[str, Any]) -> None:
    assert granularity_to_json(granularity) == data
    assert granularity_from_json(data) == granularity


def test_a_spec_is_this_dict() -> None:
    assert NVFP4.to_json() == {
        "element": "e2m1",
        "granularity": {"kind": "block", "sizes": {"-1": 16}},
        "scale": "e4m3",
        "global_max": 2688.0,
        "dynamic": True,
        "arithmetic": "multiply",
        "ties": "even",
    }


def test_fields_left_out_take_their_defaults() -> None:
    spec = QuantSpec.from_json({"element": "int8"})

    assert spec == QuantSpec("int8", PerTensor(), "float32", None, False, "multiply", "even")


def test_every_spec_comes_back_from_text() -> None:
    specs = many_specs()
    assert len(set(specs)) == 4 * 6 * 5 * 3

    for spec in specs:
        assert QuantSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_different_specs_have_different_keys_and_equal_ones_equal_keys() -> None:
    specs = many_specs()

    assert len({spec.key for spec in specs}) == len(specs)
    assert [spec.key for spec in specs] == [dataclasses.replace(spec).key for spec in specs]


@pytest.mark.parametrize("other", [{"global_max": 2688}, {"dynamic": 1}], ids=str)
def test_equal_specs_have_equal_keys_however_their_numbers_are_written(other: dict[str, Any]) -> None:
    same = dataclasses.replace(NVFP4, **other)
    assert same == NVFP4

    assert same.key == NVFP4.key


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_chain_comes_back_from_its_key(length: int) -> None:
    chain = many_specs()[:length]

    assert parse_chain(chain_key(chain)) == tuple(chain)


def test_a_key_is_that_of_a_chain_of_one() -> None:
    assert NVFP4.key == chain_key([NVFP4])
    assert parse_chain(NVFP4.key) == (NVFP4,)


def test_keys_are_compact_json_with_sorted_fields() -> None:
    data = [QuantSpec("int8").to_json()]

    assert QuantSpec("int8").key == json.dumps(data, sort_keys=True).replace(" ", "")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (QuantSpec("int8"), "int8 tensor"),
        (QuantSpec("int8", PerChannel(-2)), "int8 channel-2"),
        (QuantSpec("e4m3", PerToken(), dynamic=True), "e4m3 token dynamic"),
        (NVFP4, "e2m1 block{-1:16} e4m3·global dynamic"),
        (
            QuantSpec("e4m3", PerBlock(((-2, 128), (-1, 64))), arithmetic="divide"),
            "e4m3 block{-1:64,-2:128}",
        ),
        (QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True), "e2m1 block{-1:32} e8m0 dynamic"),
    ],
)
def test_short_names(spec: QuantSpec, name: str) -> None:
    assert str(spec) == name
