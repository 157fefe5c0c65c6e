"""Unquantizing gives back the very model, and quantizing that again gives the very same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_models import two_layers
from helpers.calibration_snapshot import raw_bytes, same_bits, snapshot, state_bytes
from helpers.exporters_models import digests
from helpers.tiny import tiny_llama, token_batches

BATCHES = token_batches()
PRESETS = [
    "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "NVFP4_DEFAULT_CFG+NVFP4_KV_CFG",
    "INT8_DEFAULT_CFG",
    "MXFP4_DEFAULT_CFG",
]


def quantized(model: nn.Module, preset: str) -> nn.Module:
    return octavo.quantize(model, octavo.merge_configs(*preset.split("+")), BATCHES, quiet=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("preset", PRESETS)
def test_unquantizing_gives_back_the_very_model(preset: str, attention: str) -> None:
    model = tiny_llama(attn_implementation=attention)
    before, classes = snapshot(model), [type(module) for module in model.modules()]
    with torch.no_grad():
        logits = model(BATCHES[0]).logits

    quantized(model, preset)
    assert [type(module) for module in model.modules()][: len(classes)] != classes
    with torch.no_grad():
        assert not torch.equal(model(BATCHES[0]).logits, logits), "quantizing changes something"
    octavo.unquantize(model)

    assert snapshot(model) == before
    assert [type(module) for module in model.modules()] == classes
    with torch.no_grad():
        assert same_bits(model(BATCHES[0]).logits, logits)


def test_hooks_and_attributes_of_the_user_survive_both_ways() -> None:
    model = two_layers()
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    model[0].label = "mine"  # type: ignore[assignment]
    model[0].weight.requires_grad_(False)
    before = snapshot(model)

    octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)
    model(torch.zeros(1, 32))
    assert (calls, model[0].label, model[0].weight.requires_grad) == (["hook"], "mine", False)

    assert snapshot(octavo.unquantize(model)) == before


def test_quantized_layers_are_still_instances_of_their_class_with_the_same_parameters() -> None:
    model = two_layers()
    parameters = [id(parameter) for parameter in model.parameters()]
    names = list(dict(model.named_parameters()))

    octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)

    assert all(isinstance(layer, nn.Linear) for layer in model)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert list(dict(model.named_parameters())) == names


@pytest.mark.parametrize("preset", PRESETS)
def test_quantizing_again_gives_the_same_bytes(preset: str, tmp_path: Path) -> None:
    model = tiny_llama()
    folders = tmp_path / "first", tmp_path / "second"
    states = []
    for folder in folders:
        octavo.export_hf_checkpoint(quantized(model, preset), export_dir=folder, quiet=True)
        states.append(state_bytes(model))
        octavo.unquantize(model)

    assert states[0] == states[1]
    assert digests(folders[0]) == digests(folders[1])


def test_a_model_is_unquantized_after_it_was_trained_a_step() -> None:
    model = octavo.quantize(two_layers(), "INT8_WEIGHT_ONLY_CFG", quiet=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(4, 32)).square().sum().backward()
    optimizer.step()
    trained = [raw_bytes(parameter) for parameter in model.parameters()]

    octavo.unquantize(model)

    assert [raw_bytes(parameter) for parameter in model.parameters()] == trained
    assert trained != [raw_bytes(parameter) for parameter in two_layers().parameters()]
