"""`bias` and `rotate` in a config: what they mean, where they can be, and what would change a model."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from helpers.adapters_models import tiny_model
from helpers.config_rules import FP8, OFF, entry
from octavo.core.config.attributes import parse_attributes
from octavo.core.config.transforms import transform_attributes
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.core.quantizers import Bias, Rotation

STATIC = {-2: None, -4: None, "type": "static"}
BIASES: list[tuple[Any, Bias | None]] = [
    (None, None),
    (STATIC, Bias((-4, -2))),
    ({"-2": None, "-4": None, "method": "max_min"}, Bias((-4, -2), "max_min")),
    ({-1: None, "type": "dynamic"}, Bias((-1,), dynamic=True)),
]
ROTATIONS: list[tuple[Any, Rotation | None]] = [
    (False, None),
    (True, Rotation()),
    ({"enable": True, "rotate_fp32": True}, Rotation()),
    ({"enable": True, "mode": "rotate_back", "block_size": 32}, Rotation(32, back=True)),
    ({"enable": False, "block_size": 32}, None),
    ({"block_size": 32}, None),  # as in ModelOpt: a dict has to say enable
]


@pytest.mark.parametrize(("data", "bias"), BIASES, ids=str)
def test_bias(data: Any, bias: Bias | None) -> None:
    assert parse_attributes({"bias": data}, "here").to_bias() == bias
    assert parse_attributes(transform_attributes(bias, None), "here").to_bias() == bias


@pytest.mark.parametrize(("data", "rotation"), ROTATIONS, ids=str)
def test_rotate(data: Any, rotation: Rotation | None) -> None:
    assert parse_attributes({"rotate": data}, "here").to_rotation() == rotation
    assert parse_attributes(transform_attributes(None, rotation), "here").to_rotation() == rotation


def plan(*entries: dict[str, Any], **sizes: Any) -> octavo.Plan:
    model = tiny_model("llama", **sizes)
    return octavo.plan(model, {"quant_cfg": [OFF, *entries], "algorithm": "max"})


KEYS, VALUES = "*k_bmm_quantizer", "*v_bmm_quantizer"
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        entry(KEYS, {"bias": {**STATIC, "kind": 1}}),
        ConfigError,
        r"self_attn\.k_bmm_quantizer: unknown option 'kind'",
    ),
    (
        entry(KEYS, {"bias": {-2: None, "type": "maybe"}}),
        ConfigError,
        r"bias\['type'\]='maybe'; .* static, dynamic",
    ),
    (
        entry(KEYS, {"bias": {"method": "mean"}}),
        ConfigError,
        "name the dims that share one by negative numbers",
    ),
    (entry(KEYS, {"bias": {1: None}}), ConfigError, "by negative numbers, such as"),
    (entry(KEYS, {"bias": {-1: 16}}), UnsupportedError, "biases of blocks are not available"),
    (entry(KEYS, {"bias": {-5: None}}), ConfigError, r"bias over axis -5: .* -4 \(batch\)"),
    (entry(KEYS, {"bias": {-2: None}}), ConfigError, r"over axes -2 follows dims that vary .*-4 \(batch\)"),
    (entry(KEYS, {"bias": STATIC, "constant_amax": 2.0}), ConfigError, r"excludes constant_amax=2\.0"),
    (
        entry(KEYS, [{"bias": STATIC}, FP8]),
        UnsupportedError,
        "bias is available for one format, found 2 in turn",
    ),
    (entry("*input_quantizer", {"bias": STATIC}), UnsupportedError, "not for input_quantizer"),
    (
        entry("*weight_quantizer", {"rotate": True}),
        UnsupportedError,
        r"rotate is available for q_.*not for weight_",
    ),
    (entry(KEYS, {"rotate": {"enabled": True}}), ConfigError, "unknown option 'enabled' of rotate.*'enable'"),
    (
        entry(KEYS, {"rotate": {"mode": "back"}}),
        ConfigError,
        r"rotate\['mode'\]='back'; .* rotate, rotate_back",
    ),
    (
        entry(KEYS, {"rotate": {"block_size": 24}}),
        ConfigError,
        r"rotate\['block_size'\]=24; expected a power of two",
    ),
    (
        entry(KEYS, {"rotate": {"enable": True, "block_size": 32}}),
        ConfigError,
        "k_bmm_quantizer: a Hadamard transform in blocks of 32 .* last dim, 16; the largest is 16",
    ),
    (
        entry(KEYS, {"rotate": True}),
        ConfigError,
        r"layers\.0\.self_attn: queries and keys .* found q_bmm_quantizer not rotated, k_bmm_quantizer rotated",
    ),
    (entry(VALUES, {"rotate": True}), ConfigError, r"v_bmm_quantizer: nothing turns rotated values back"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_refused_by_name(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(wrong)


def test_a_bias_needs_calibration() -> None:
    made = octavo.plan(tiny_model("llama"), "FP8_AFFINE_KV_CFG")

    assert len(made.errors) == 4
    assert made.errors[0] == (
        "model.layers.0.self_attn.k_bmm_quantizer: the static mean bias over -4, -2 needs calibration and the "
        "algorithm is None; set 'algorithm': 'max'"
    )


def test_the_plan_shows_them() -> None:
    rotated = {"rotate": True}
    made = plan(
        entry("*q_bmm_quantizer", rotated, enable=False),
        entry(KEYS, {**FP8, **rotated, "bias": STATIC}),
        num_hidden_layers=1,
    )

    place = "model.layers.0.self_attn"
    transforms = {
        f"{place}.q_bmm_quantizer": "rotated",
        f"{place}.k_bmm_quantizer": "rotated, mean bias over -4, -2",
    }
    assert made.to_json()["transforms"] == transforms
    assert "  1 x q_bmm_quantizer rotated" in made.summary().splitlines()
    assert list(made.other_quantizers()) == [f"{place}.k_bmm_quantizer"], "the query is not rounded"
