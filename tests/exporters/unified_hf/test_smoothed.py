"""Checkpoints of smoothed models: written, read back as what they compute, and refused when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import octavo
from helpers.calibration_snapshot import same_bits, snapshot
from helpers.exporters_models import with_tensors
from helpers.smoothed_models import PRESETS, smoothed
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration.layer_records import attach_described, describe_quantizers
from octavo.core.calibration.smoothing_fold import smoothed_weights
from octavo.core.errors import CheckpointError
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.modules import quantized_layers, tensor_quantizers

LAYER = "model.layers.1.mlp.down_proj"


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(token_batches()[0]).logits
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_read_back_computes_what_the_finalized_model_does(preset: str, tmp_path: Path) -> None:
    model = smoothed(preset)
    before = logits(model)

    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    assert same_bits(logits(model), before)
    with octavo.finalized(model, "unified_hf"):
        assert same_bits(logits(octavo.load_quantized(tmp_path / "out")), logits(model))
        octavo.export_hf_checkpoint(model, export_dir=tmp_path / "finalized", quiet=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "finalized" / "model.safetensors"
    ).read_bytes()
    for file in ("hf_quant_config.json", "config.json"):
        assert (tmp_path / "out" / file).read_text() == (tmp_path / "finalized" / file).read_text()
    assert report.warnings == ()


def test_the_report_says_what_is_not_folded_and_why(tmp_path: Path) -> None:
    model = smoothed("INT4_AWQ_CFG")
    layer = model.get_submodule("model.layers.1.mlp")
    forward = layer.forward
    layer.forward = lambda x: forward(x) + 0 * x

    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    (warning,) = report.warnings
    assert "model.layers.1.mlp.gate_proj" in warning
    assert "something else reads" in warning
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.1.mlp.gate_proj.pre_quant_scale" in stored
    assert "model.layers.0.mlp.gate_proj.pre_quant_scale" not in stored
    del layer.forward


def test_formats_of_a_smoothed_checkpoint(tmp_path: Path) -> None:
    octavo.export_hf_checkpoint(smoothed("NVFP4_AWQ_LITE_CFG"), export_dir=tmp_path / "out", quiet=True)

    layers = exporter_of(tmp_path / "out").open(tmp_path / "out").layers

    smoothing = {name.rpartition(".")[2]: layer.smoothing for name, layer in layers.items()}
    assert smoothing["o_proj"] == "scaled"
    assert smoothing["down_proj"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], r"a float for each of 256 input channels, found torch.bfloat16 of shape \(255,\)"),
        (lambda t: t.to(torch.int32), r"256 input channels, found torch.int32 of shape \(256,\)"),
        (lambda t: t * 0, "no positive numbers"),
        (lambda t: t * torch.nan, "no positive numbers"),
    ],
)
def test_damaged_factors(change: Callable[[Tensor], Tensor], message: str, tmp_path: Path) -> None:
    octavo.export_hf_checkpoint(smoothed("INT4_AWQ_CFG"), export_dir=tmp_path / "out", quiet=True)
    name = f"{LAYER}.pre_quant_scale"
    with_tensors(tmp_path / "out", lambda tensors: tensors.update({name: change(tensors[name]).contiguous()}))

    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        octavo.load_quantized(tmp_path / "out")


@pytest.mark.parametrize(
    ("scale", "message"), [(None, "weight_scale_2' is missing"), (-1.0, "positive number")]
)
def test_damaged_scales_of_the_second_format(scale: float | None, message: str, tmp_path: Path) -> None:
    octavo.export_hf_checkpoint(smoothed("W4A8_AWQ_BETA_CFG"), export_dir=tmp_path / "out", quiet=True)
    changed = {} if scale is None else {f"{LAYER}.weight_scale_2": torch.tensor(scale)}

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{LAYER}.weight_scale_2"]
        tensors.update(changed)

    with_tensors(tmp_path / "out", change)

    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(tmp_path / "out")


def test_factors_of_quantizers_that_only_multiply_are_recorded() -> None:
    model, other = smoothed("INT4_AWQ_CFG"), tiny_llama(torch.bfloat16)
    attach_described(other, describe_quantizers(model))
    other.load_state_dict(model.state_dict())

    assert len(list(smoothed_weights(other))) == 14
    assert same_bits(logits(other), logits(model))


def corrected() -> nn.Module:
    """Return a smoothed NVFP4 model with low-rank corrections of its weights."""
    model = smoothed("NVFP4_SVDQUANT_DEFAULT_CFG")
    generator = torch.Generator().manual_seed(5)
    for name, layer in quantized_layers(model):
        if name.endswith("_proj"):
            rows, columns = layer.weight.shape
            quantizer = layer.weight_quantizer
            quantizer.low_rank_down = (torch.randn(8, columns, generator=generator) / 50).bfloat16().float()
            quantizer.low_rank_up = (torch.randn(rows, 8, generator=generator) / 50).bfloat16().float()
    return model


def test_low_rank_corrections_are_stored_and_read(tmp_path: Path) -> None:
    model = corrected()
    before, expected = snapshot(model), logits(model)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    stored = load_file(tmp_path / "out" / "model.safetensors")

    assert snapshot(model) == before
    assert stored[f"{LAYER}.svdquant_lora_a"].shape == (8, 256)
    assert stored[f"{LAYER}.svdquant_lora_b"].shape == (128, 8)
    with octavo.finalized(model, "unified_hf"):
        assert same_bits(logits(octavo.load_quantized(tmp_path / "out")), logits(model))
        for quantizer in (q for _, q in tensor_quantizers(model)):
            quantizer.enabled = False
        found = logits(model)
    for quantizer in (q for name, q in tensor_quantizers(model) if q.spec is not None):
        quantizer.enabled = False
    assert torch.allclose(found, logits(model), atol=0.05)  # one factor for q, k and v, and the same product
    assert not torch.allclose(found, expected, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.svdquant_lora_b"), r"svdquant_lora_b' is missing"),
        (
            lambda t: t.update({f"{LAYER}.svdquant_lora_a": torch.ones(8, 5)}),
            r"make a weight \[128, 256\], found shapes \(8, 5\) and \(128, 8\)",
        ),
        (
            lambda t: t.update({f"{LAYER}.svdquant_lora_a": torch.full((8, 256), torch.nan)}),
            "NaN or infinite",
        ),
    ],
)
def test_damaged_corrections(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    octavo.export_hf_checkpoint(corrected(), export_dir=tmp_path / "out", quiet=True)
    with_tensors(tmp_path / "out", change)

    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(tmp_path / "out")
