"""Folded weights: the same numbers without rounding them again, and no way back that would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_models import quantizer_config, rows, two_layers
from helpers.modes_saved import logits, plain, quantized, scrambled
from octavo.core.errors import ModeError, PlanError
from octavo.core.modules import quantized_layers


@pytest.mark.parametrize(
    "preset", ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "MXFP4_DEFAULT_CFG", "W4A8_AWQ_BETA_CFG"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_model_computes_the_same(preset: str, dtype: torch.dtype) -> None:
    config = {**octavo.preset(preset), "algorithm": "max"}
    model = octavo.quantize(plain(dtype=dtype), config, [torch.arange(1, 20)[None]], quiet=True)
    expected, parameters = logits(model), dict(model.named_parameters())

    octavo.fold_weight(model)

    assert torch.equal(logits(model), expected)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    layers = [layer for _, layer in quantized_layers(model)]
    assert layers
    assert all(stage.enabled is False for layer in layers for stage in layer.weight_quantizer.stages())
    assert not torch.equal(
        model.model.layers[0].mlp.up_proj.weight, plain(dtype=dtype).model.layers[0].mlp.up_proj.weight
    )


def test_it_is_recorded_saved_and_restored(tmp_path: Path) -> None:
    model = octavo.fold_weight(quantized())
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(scrambled(), tmp_path / "saved")

    assert [record.mode for record in octavo.history(restored)] == ["quantize", "fold_weight"]
    assert torch.equal(logits(restored), logits(model))
    with pytest.raises(ModeError, match="folded"):
        octavo.unquantize(restored)


def test_again_is_the_same_and_activations_can_still_change() -> None:
    model = octavo.fold_weight(quantized())
    expected = logits(model)
    octavo.fold_weight(model)
    octavo.disable_quantizer(model, "*")
    octavo.enable_quantizer(model, "*input_quantizer")
    octavo.enable_quantizer(model, "*[kv]_bmm_quantizer")

    assert len(octavo.history(model)) == 2
    assert torch.equal(logits(model), expected)


REFUSED: dict[str, Callable[[nn.Module, Path], Any]] = {
    "export it": lambda model, folder: octavo.export_hf_checkpoint(model, export_dir=folder / "out", quiet=True),
    "finalize it": lambda model, folder: octavo.finalize(model, "unified_hf"),
    "unquantize it": lambda model, folder: octavo.unquantize(model),
    "change its weight quantizers": lambda model, folder: octavo.enable_quantizer(model, "*"),
}  # fmt: skip


@pytest.mark.parametrize("doing", REFUSED)
def test_what_would_need_the_original_weights_is_refused(doing: str, tmp_path: Path) -> None:
    model = octavo.fold_weight(quantized())
    expected = logits(model)

    with pytest.raises(
        ModeError, match=f"weights are folded.*original ones are gone; to {doing}, load and quantize"
    ):
        REFUSED[doing](model, tmp_path)

    assert torch.equal(logits(model), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_ready_is_refused() -> None:
    with pytest.raises(ModeError, match="not quantized"):
        octavo.fold_weight(plain())
    model = quantized()
    octavo.finalize(model, "unified_hf")
    with pytest.raises(ModeError, match="finalized for unified_hf"):
        octavo.fold_weight(model)
    model = quantized()
    octavo.set_quantizer_attribute(model, "*up_proj.weight_quantizer", {"axis": 0})
    with pytest.raises(
        ModeError, match=r"^1 weight quantizers were never calibrated: .*up_proj\.weight_quantizer"
    ):
        octavo.fold_weight(model)
    with pytest.raises(PlanError, match="on the meta device"):
        octavo.fold_weight(quantized().to("meta"))


def test_nothing_to_fold_is_no_mode() -> None:
    config = quantizer_config(input_quantizer={"num_bits": 8})
    model = octavo.quantize(two_layers(), config, [rows()], quiet=True)

    octavo.fold_weight(model)

    assert [record.mode for record in octavo.history(model)] == ["quantize"]
    octavo.unquantize(model)
