"""Attributes that ModelOpt has and this version does not: refused by name, wherever they stand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo
from helpers.config_rules import entry, weights
from octavo.core.errors import UnsupportedError

UNAVAILABLE: list[tuple[str, Any]] = [
    ("fake_quant", False),
    ("backend", "fp8_per_tensor"),
    ("backend_extra_args", {"kernel": 1}),
    ("learn_amax", True),
    ("calibrator", ("max", 2)),
    ("trt_high_precision_dtype", "Half"),
]


def model() -> nn.Module:
    return nn.ModuleDict({"up": nn.Linear(16, 16)})


@pytest.mark.parametrize(("name", "value"), UNAVAILABLE, ids=lambda value: str(value))
def test_refused_by_name_on_a_quantizer_that_is_on(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        octavo.plan(model(), weights({name: value}))

    assert str(caught.value).startswith(f"up.weight_quantizer: {name}")
    assert "not available in this version" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_options_of_blocks() -> None:
    name, value = "scale_block_sizes", {-1: 16}
    with pytest.raises(UnsupportedError, match=r"^up\.weight_quantizer: block_sizes") as caught:
        octavo.plan(model(), weights({"num_bits": (2, 1), "block_sizes": {-1: 16, name: value}}))

    assert f"block_sizes[{name!r}]={value!r} is not available" in str(caught.value)


def test_a_quantizer_that_is_off_may_carry_anything_but_a_rotation() -> None:
    """Rotating acts without quantizing, so that leaving it out would change the model."""
    off = entry("*input_quantizer", {"backend": "other", "fake_quant": False}, enable=False)
    rotated = entry("*input_quantizer", {"rotate": True}, enable=False)

    assert octavo.plan(model(), weights({"num_bits": 8}, off)).errors == ()
    with pytest.raises(UnsupportedError, match=r"^up\.input_quantizer: rotate is available for q_bmm"):
        octavo.plan(model(), weights({"num_bits": 8}, rotated))


def test_a_rotation_that_is_switched_off() -> None:
    assert octavo.plan(model(), weights({"rotate": {"enable": False}})).errors == ()
