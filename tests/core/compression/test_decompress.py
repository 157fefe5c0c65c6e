"""Dense weights again: the values that codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from helpers.calibration_snapshot import same_bits
from helpers.compressed_models import FORMATS, quantized_llama
from helpers.modes_saved import logits
from helpers.tiny import tiny_llama
from octavo.core.modules import packed_layers


@pytest.mark.parametrize("name", ["int4", "fp8 square", "nvfp4", "int4 then fp8", "low rank"])
def test_the_model_computes_the_same(name: str) -> None:
    model = octavo.compress(quantized_llama(FORMATS[name]), dialect="neutral", quiet=True)
    expected, names = logits(model), list(tiny_llama(num_hidden_layers=1).state_dict())

    assert octavo.decompress(model) is model

    assert same_bits(logits(model), expected)
    assert list(packed_layers(model)) == []
    assert [name for name, _ in model.named_parameters()] == names
    layer: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    assert type(layer).__name__ == "QuantLinear"
    assert type(layer.weight) is torch.nn.Parameter
    assert layer.weight.requires_grad


def test_the_values_are_those_that_folding_gives() -> None:
    folded = octavo.fold_weight(quantized_llama("INT4_BLOCKWISE_WEIGHT_ONLY_CFG"))
    model = octavo.compress(quantized_llama("INT4_BLOCKWISE_WEIGHT_ONLY_CFG"), dialect="neutral", quiet=True)

    octavo.decompress(model)

    expected = dict(folded.named_parameters())
    assert all(same_bits(tensor, expected[name]) for name, tensor in model.named_parameters())


@pytest.mark.parametrize("dialect", ["unified_hf", "neutral"])
def test_it_is_a_folded_model_that_is_saved_and_restored(dialect: str, tmp_path: Path) -> None:
    model = octavo.compress(quantized_llama("NVFP4_DEFAULT_CFG"), dialect=dialect, quiet=True)
    octavo.decompress(model)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(tiny_llama(torch.bfloat16, num_hidden_layers=1), tmp_path / "saved")

    assert [record.mode for record in octavo.history(restored)] == ["quantize", "fold_weight"]
    assert same_bits(logits(restored), logits(model))
    for verb in (octavo.unquantize, octavo.compress):
        with pytest.raises(octavo.ModeError, match="weights are folded"):
            verb(restored)


def test_it_can_be_trained() -> None:
    model = octavo.compress(quantized_llama("INT8_WEIGHT_ONLY_CFG", torch.float32), quiet=True)
    octavo.decompress(model)
    layer: Any = model.get_submodule("model.layers.0.mlp.up_proj")

    model(torch.arange(1, 9)[None]).logits.sum().backward()

    assert layer.weight.grad.abs().sum() > 0
