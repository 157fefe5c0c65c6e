"""Every attribute of a quantizer, as the format that it means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

import octavo
from helpers.config_rules import weights
from octavo.core.config.attributes import QuantizerAttributes, parse_attributes
from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec

NVFP4_BLOCKS = {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}
MX_BLOCKS = {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}
BLOCKS_16 = PerBlock(((-1, 16),))

SPECS: list[tuple[dict[str, Any], QuantSpec]] = [
    ({}, QuantSpec("int8", PerTensor())),
    ({"num_bits": 4}, QuantSpec("int4")),
    ({"num_bits": 2}, QuantSpec("int2")),
    ({"num_bits": (4, 3)}, QuantSpec("e4m3")),
    ({"num_bits": (5, 2)}, QuantSpec("e5m2")),
    ({"num_bits": (2, 1)}, QuantSpec("e2m1")),
    ({"num_bits": (3, 2)}, QuantSpec("e3m2")),
    ({"num_bits": (2, 3)}, QuantSpec("e2m3")),
    ({"num_bits": [4, 3]}, QuantSpec("e4m3")),
    ({"num_bits": "e4m3"}, QuantSpec("e4m3")),
    ({"num_bits": "uint4"}, QuantSpec("uint4")),
    ({"num_bits": 8, "unsigned": True}, QuantSpec("uint8")),
    ({"num_bits": 8, "narrow_range": True}, QuantSpec("int8_narrow")),
    ({"axis": None}, QuantSpec("int8", PerTensor())),
    ({"axis": 0}, QuantSpec("int8", PerChannel(0))),
    ({"axis": -1}, QuantSpec("int8", PerChannel(-1))),
    ({"axis": (0,)}, QuantSpec("int8", PerChannel(0))),
    ({"type": "dynamic"}, QuantSpec("int8", dynamic=True)),
    ({"type": "dynamic", "axis": 0}, QuantSpec("int8", PerChannel(0), dynamic=True)),
    ({"type": "dynamic", "block_sizes": {-1: None}}, QuantSpec("int8", PerToken(), dynamic=True)),
    ({"block_sizes": {-1: None, "type": "dynamic"}}, QuantSpec("int8", PerToken(), dynamic=True)),
    ({"block_sizes": {-1: None}}, QuantSpec("int8", PerToken())),
    ({"block_sizes": {-1: 16}}, QuantSpec("int8", BLOCKS_16)),
    ({"block_sizes": {-1: 16, "type": "static"}}, QuantSpec("int8", BLOCKS_16)),
    ({"block_sizes": {-1: 16, "type": "dynamic"}}, QuantSpec("int8", BLOCKS_16, dynamic=True)),
    ({"block_sizes": {-1: 16}, "type": "dynamic"}, QuantSpec("int8", BLOCKS_16, dynamic=True)),
    ({"block_sizes": {"-1": 16}}, QuantSpec("int8", BLOCKS_16)),
    ({"block_sizes": {-2: 8, -1: 16}}, QuantSpec("int8", PerBlock(((-1, 16), (-2, 8))))),
    ({"block_sizes": {-2: 8}}, QuantSpec("int8", PerBlock(((-2, 8),)))),
    (
        {"num_bits": (2, 1), "block_sizes": NVFP4_BLOCKS},
        QuantSpec("e2m1", BLOCKS_16, "e4m3", 2688.0, dynamic=True),
    ),
    (
        {"num_bits": (2, 1), "block_sizes": {**NVFP4_BLOCKS, "type": "static"}},
        QuantSpec("e2m1", BLOCKS_16, "e4m3", 2688.0),
    ),
    (
        {"num_bits": (2, 1), "block_sizes": {**NVFP4_BLOCKS, "type": "static", "four_over_six": 1}},
        QuantSpec("e2m1", BLOCKS_16, "e4m3", 1536.0),
    ),
    (
        {"num_bits": (2, 1), "block_sizes": {"-1": 16, "type": "dynamic", "scale_bits": [4, 3]}},
        QuantSpec("e2m1", BLOCKS_16, "e4m3", 2688.0, dynamic=True),
    ),
    (
        {"num_bits": (4, 3), "block_sizes": MX_BLOCKS},
        QuantSpec("e4m3", PerBlock(((-1, 32),)), "e8m0", dynamic=True),
    ),
    ({"block_sizes": MX_BLOCKS}, QuantSpec("int8", PerBlock(((-1, 32),)), "e8m0", dynamic=True)),
    ({"block_sizes": {-1: 16, "scale_block_sizes": None, "four_over_six": 0}}, QuantSpec("int8", BLOCKS_16)),
]


@pytest.mark.parametrize(("attributes", "spec"), SPECS, ids=[str(attributes) for attributes, _ in SPECS])
def test_format(attributes: dict[str, Any], spec: QuantSpec) -> None:
    assert parse_attributes(attributes, "here").to_spec() == spec


# Said again with the value that stands for "not used", attributes that are not available change nothing.
UNUSED = {
    "fake_quant": True, "bias": None, "rotate": False, "backend": None, "backend_extra_args": None,
    "learn_amax": False, "calibrator": "max", "trt_high_precision_dtype": "Float",
}  # fmt: skip
# What these mean is no part of the format.
BESIDE = {
    "enable": True,
    "effective_bits": 4.5,
    "constant_amax": 2.0,
    "use_constant_amax": True,
    "pass_through_bwd": True,
}


@pytest.mark.parametrize("name", [*UNUSED, *BESIDE])
def test_attributes_beside_the_format(name: str) -> None:
    assert parse_attributes({name: (UNUSED | BESIDE)[name]}, "here").to_spec() == QuantSpec("int8")


def test_no_attribute_is_left_out_here() -> None:
    tried = {name for attributes, _ in SPECS for name in attributes}

    assert tried | UNUSED.keys() | BESIDE.keys() == QuantizerAttributes.model_fields.keys()


def test_constant_amax() -> None:
    assert parse_attributes({}, "here").pinned_amax() is None
    assert parse_attributes({"constant_amax": 2688.0}, "here").pinned_amax() == 2688.0
    assert parse_attributes({"use_constant_amax": True}, "here").pinned_amax() == 448.0


def test_what_the_plan_hands_on() -> None:
    """Amax, gradients and stages reach the layer's setting; effective_bits and a config after JSON do no harm."""
    stages = [
        {"num_bits": 4, "pass_through_bwd": True, "effective_bits": 4.0},
        {"constant_amax": 2.5, "enable": False},
        {"constant_amax": 3},
    ]
    config = json.loads(json.dumps(weights(stages)))
    (layer,) = octavo.plan(nn.Sequential(nn.Linear(16, 16)), config).layers
    first, second = layer.quantizers["weight_quantizer"]  # the stage that is off is left out

    assert (first.spec, first.pinned_amax, first.range_mask) == (QuantSpec("int4"), None, False)
    assert (second.spec, second.pinned_amax, second.range_mask) == (QuantSpec("int8"), 3.0, True)
