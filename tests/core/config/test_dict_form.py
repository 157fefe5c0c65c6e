"""The older dict: `default` first wherever it stands, then attributes merge in order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from helpers.config_rules import INPUT, OFF, WEIGHT, decided, entry, is_on

W = "*weight_quantizer"
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "nothing matches": ({"*input_quantizer": {"num_bits": 4}}, []),
    "attributes merge": ({"*": {"num_bits": 4, "axis": 0}, W: {"num_bits": 6}}, [{"num_bits": 6, "axis": 0}]),
    "later wins per attribute": (
        {W: {"num_bits": 4, "axis": 0}, "*up_proj*": {"axis": 1}, "*layers.0*": {"num_bits": 6}},
        [{"num_bits": 6, "axis": 1}],
    ),
    "block_sizes are one attribute": (
        {"*": {"block_sizes": {-1: 16, "scale_bits": (8, 0)}}, W: {"block_sizes": {-1: 32}}},
        [{"block_sizes": {-1: 32}}],
    ),
    "off keeps attributes": ({W: {"num_bits": 4}, "*up_proj*": {"enable": False}}, [{"num_bits": 4, "enable": False}]),
    "attributes turn on": ({"default": {"enable": False}, W: {"num_bits": 4}}, [{"num_bits": 4}]),
    "no attributes, no change": ({"default": {"enable": False}, W: {}}, [{"enable": False}]),
    "off stays off": ({W: {"num_bits": 4, "enable": False}}, [{"num_bits": 4, "enable": False}]),
    "on is said": ({"default": {"enable": False}, W: {"num_bits": 4, "enable": True}}, [{"num_bits": 4}]),
    "only a default": ({"default": {"num_bits": 4}}, [{"num_bits": 4}]),
    "default is no glob": ({"default": {"num_bits": 4}, "*default*": {"axis": 0}}, [{"num_bits": 4}]),
}  # fmt: skip


@pytest.mark.parametrize(("quant_cfg", "expected"), CASES.values(), ids=CASES.keys())
def test_precedence(quant_cfg: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert decided(quant_cfg) == expected


def test_default_comes_first_wherever_it_stands() -> None:
    items = [("default", {"enable": False, "num_bits": 4}), (W, {"enable": True}), ("*up_proj*", {"axis": 0})]

    for order in itertools.permutations(items):
        assert decided(dict(order)) == [{"num_bits": 4, "axis": 0}], order
        assert decided(dict(order), "lm_head.weight_quantizer") == [{"num_bits": 4}], order
        assert decided(dict(order), "lm_head.input_quantizer") == [{"num_bits": 4, "enable": False}], order


def test_entries_nested_under_a_class() -> None:
    quant_cfg = {
        "default": {"enable": False},
        "nn.Linear": {
            "*weight_quantizer": {"num_bits": 4, "enable": True},
            "*input_quantizer": {"enable": True},
        },
    }

    assert decided(quant_cfg, WEIGHT, {"nn.Linear"}) == [{"num_bits": 4}]
    assert decided(quant_cfg, INPUT, {"nn.Linear"}) == [{}]
    assert decided(quant_cfg, WEIGHT, {"nn.Embedding"}) == [{"enable": False}]


def test_nested_entries_merge_and_keep_their_place() -> None:
    nested = {"nn.Linear": {"*": {"num_bits": 4, "axis": 0}}}

    assert decided({**nested, W: {"num_bits": 6}}) == [{"num_bits": 6, "axis": 0}]
    assert decided({W: {"num_bits": 6}, **nested}) == [{"num_bits": 4, "axis": 0}]


def test_the_same_content_means_something_else_in_the_other_form() -> None:
    every, weight = {"num_bits": 4, "axis": 0}, {"num_bits": 6}

    assert decided({"*": every, W: weight}) == [{"num_bits": 6, "axis": 0}]
    assert decided([entry("*", every), entry(W, weight)]) == [{"num_bits": 6}]
    assert is_on({"*": {"enable": False}, W: weight})
    assert is_on([OFF, entry(W, weight)])


def test_the_default_config_of_modelopt_0_11() -> None:
    """specs/inventory-0.11.md, 3.2: the default is `{"default": {"num_bits": 8, "axis": None}}`."""
    assert decided({"default": {"num_bits": 8, "axis": None}}) == [{}]


def test_a_preset_as_0_11_wrote_it() -> None:
    quant_cfg = {
        "*weight_quantizer": {"num_bits": 4, "block_sizes": {-1: 128}, "enable": True},
        "*input_quantizer": {"enable": False},
        "*lm_head*": {"enable": False},
        "*output_layer*": {"enable": False},
        "default": {"enable": False},
    }

    assert decided(quant_cfg) == [{"num_bits": 4, "block_sizes": {-1: 128}}]
    names = [INPUT, "lm_head.weight_quantizer", "model.layers.0.self_attn.k_bmm_quantizer"]
    assert [is_on(quant_cfg, name) for name in names] == [False, False, False]
