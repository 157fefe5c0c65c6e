"""A KV preset on a model whose attention does not use the interface says so."""

from __future__ import annotations

import re

import pytest

import octavo
from helpers.adapters_models import FP8_KV, tiny_model, tokens
from octavo.core.errors import PlanError

PRESET = octavo.merge_configs(octavo.INT8_WEIGHT_ONLY_CFG, octavo.FP8_KV_CFG)
PATTERN = "'*[kv]_bmm_quantizer'"


def test_joined_to_another_preset_it_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("bloom")

    assert any(PATTERN in warning for warning in octavo.plan(model, PRESET).warnings)
    octavo.quantize(model, PRESET)
    assert f"warning: entry {PATTERN} matches no quantizer of this model" in capsys.readouterr().err


def test_alone_it_is_refused() -> None:
    model = tiny_model("bloom")

    with pytest.raises(
        PlanError, match=re.escape(f"turns on no quantizer: entry {PATTERN} matches no quantizer")
    ):
        octavo.quantize(model, FP8_KV, [tokens()], quiet=True)


def test_the_warning_says_that_the_attention_class_cannot_be_quantized() -> None:
    warnings = " ".join(octavo.plan(tiny_model("bloom"), PRESET).warnings)

    assert "BloomAttention" in warnings
