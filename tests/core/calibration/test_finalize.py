"""Finalizing for a dialect is undone bit for bit, whatever happens in between."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import calibrated_state
from helpers.calibration_snapshot import same_bits, snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration.finalized import finalized_for
from octavo.core.formats import QuantSpec
from octavo.core.modules import tensor_quantizers
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect

BATCHES = token_batches()
PRESETS = [
    "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "NVFP4_DEFAULT_CFG+NVFP4_KV_CFG",
    "INT8_DEFAULT_CFG",
    "MXFP4_DEFAULT_CFG",
]


def quantized(preset: str = PRESETS[0]) -> nn.Module:
    config = octavo.merge_configs(*preset.split("+"))
    return octavo.quantize(tiny_llama(torch.bfloat16), config, BATCHES, quiet=True)


def specs(model: nn.Module) -> dict[str, QuantSpec | None]:
    return {name: quantizer.spec for name, quantizer in tensor_quantizers(model)}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(BATCHES[0]).logits
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_unfinalizing_is_exact(preset: str) -> None:
    model = quantized(preset)
    before, expected = snapshot(model), logits(model)

    octavo.finalize(model, "unified_hf")
    assert finalized_for(model) == "unified_hf"
    octavo.unfinalize(model)

    assert snapshot(model) == before
    assert same_bits(logits(model), expected)
    assert finalized_for(model) is None


@pytest.mark.parametrize("preset", PRESETS)
def test_finalizing_changes_formats_or_state(preset: str) -> None:
    model = quantized(preset)
    before = specs(model), calibrated_state(model)

    octavo.finalize(model, "unified_hf")

    assert (specs(model), calibrated_state(model)) != before


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_the_context_puts_everything_back_also_when_its_body_raises(error: BaseException) -> None:
    model = quantized()
    before = snapshot(model)

    with octavo.finalized(model, "unified_hf"):
        assert snapshot(model) != before
    assert snapshot(model) == before

    with pytest.raises(type(error)), octavo.finalized(model, "unified_hf"):
        raise error
    assert snapshot(model) == before


def test_a_finalization_can_be_repeated() -> None:
    model = quantized()
    octavo.finalize(model, "unified_hf")
    first = calibrated_state(model), specs(model)
    octavo.unfinalize(model)
    octavo.finalize(model, UnifiedHfDialect())

    assert (calibrated_state(model), specs(model)) == first


def test_exporting_leaves_the_model_as_it_was_finalized_or_not(tmp_path: Path) -> None:
    model = quantized()
    for name in ("neutral", "finalized"):
        before = snapshot(model)
        octavo.export_hf_checkpoint(model, export_dir=tmp_path / name, quiet=True)
        assert snapshot(model) == before
        if name == "neutral":
            octavo.finalize(model, "unified_hf")

    files = [
        {path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("neutral", "finalized")
    ]
    assert files[0] == files[1]


def test_unquantizing_a_finalized_model_gives_the_plain_one() -> None:
    model = tiny_llama(torch.bfloat16)
    before = snapshot(model)
    octavo.quantize(model, "FP8_DEFAULT_CFG", BATCHES, quiet=True)
    octavo.finalize(model, "unified_hf")

    octavo.unquantize(model)

    assert snapshot(model) == before
    assert finalized_for(octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)) is None


def test_a_copy_of_a_finalized_model_is_unfinalized_on_its_own() -> None:
    model = quantized()
    neutral = calibrated_state(model)
    octavo.finalize(model, "unified_hf")
    finalized = calibrated_state(model)
    duplicate = copy.deepcopy(model)

    octavo.unfinalize(duplicate)

    assert calibrated_state(duplicate) == neutral
    assert calibrated_state(model) == finalized != neutral
