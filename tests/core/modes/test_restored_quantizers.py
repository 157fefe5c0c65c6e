"""Quantizers come back as they were: on or off, single or in sequence, with their gradient masks."""

from __future__ import annotations

from pathlib import Path

import torch

import octavo
from helpers.calibration_models import FP8, quantizer_config, rows, two_layers
from helpers.calibration_snapshot import same_bits
from helpers.modes_saved import logits, plain, quantized, scrambled
from octavo.core.modules import tensor_quantizers


def test_disabled_quantizers_stay_disabled_and_keep_their_state(tmp_path: Path) -> None:
    model = quantized()
    everything_on = logits(model)
    for name, quantizer in tensor_quantizers(model):
        if name.endswith(("down_proj.weight_quantizer", "q_proj.input_quantizer", "k_bmm_quantizer")):
            quantizer.enabled = False
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(scrambled(), tmp_path / "saved")

    enabled = {name: quantizer.enabled for name, quantizer in tensor_quantizers(model)}
    assert {name: quantizer.enabled for name, quantizer in tensor_quantizers(restored)} == enabled
    assert same_bits(logits(restored), logits(model))
    assert not torch.equal(logits(restored), everything_on)
    for _, quantizer in tensor_quantizers(restored):
        quantizer.enabled = quantizer.spec is not None
    assert same_bits(logits(restored), everything_on)


def test_quantizers_turned_on_again_after_quantizing_are_recorded_as_they_are_now(tmp_path: Path) -> None:
    model = quantized()
    quantizer = model.get_submodule("model.layers.0.mlp.up_proj.weight_quantizer")
    for enabled in (False, True):
        quantizer.enabled = enabled  # type: ignore[assignment]
        octavo.save(model, tmp_path / str(enabled))
        restored = octavo.restore(plain(), tmp_path / str(enabled))
        assert restored.get_submodule("model.layers.0.mlp.up_proj.weight_quantizer").enabled is enabled


def test_sequential_quantizers_and_gradient_masks_survive(tmp_path: Path) -> None:
    chain = [{"num_bits": 4, "block_sizes": {-1: 16}, "pass_through_bwd": True}, {**FP8, "enable": True}]
    config = quantizer_config(weight_quantizer=chain, input_quantizer={**FP8, "pass_through_bwd": True})  # type: ignore[arg-type]
    model = octavo.quantize(two_layers(), config, [rows()], quiet=True)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(two_layers(), tmp_path / "saved")

    masks = [(name, quantizer.range_mask) for name, quantizer in tensor_quantizers(model)]
    assert [(name, quantizer.range_mask) for name, quantizer in tensor_quantizers(restored)] == masks
    assert {mask for _, mask in masks} == {True, False}
    assert same_bits(restored(rows(1)).detach(), model(rows(1)).detach())
