"""compressed-tensors checkpoints have no place for factors on inputs: they are folded, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from helpers.smoothed_models import smoothed
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import ExportError
from octavo.core.plugins import plugins


def test_factors_that_cannot_be_folded_are_refused_by_name(tmp_path: Path) -> None:
    model = smoothed("INT8_SMOOTHQUANT_CFG")

    with pytest.raises(ExportError, match=r"those of 4 layers.*model\.layers\.0\.mlp\.down_proj.*and 1 more"):
        plugins().exporter("compressed_tensors").export(model, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_factors_that_are_folded_into_norms_are_stored_in_them(tmp_path: Path) -> None:
    model = smoothed("INT8_SMOOTHQUANT_CFG")
    for name, layer in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            layer.input_quantizer.pre_quant_scale = layer.weight_quantizer.pre_quant_scale = None
    plugins().exporter("compressed_tensors").export(model, tmp_path / "out", quiet=True)
    ids = torch.arange(1, 9)[None]

    read = octavo.load_quantized(tmp_path / "out")

    with torch.no_grad(), octavo.finalized(model, "compressed_tensors"):
        assert torch.equal(read(ids).logits, model(ids).logits)


def test_low_rank_corrections_are_refused_by_name(tmp_path: Path) -> None:
    model = octavo.quantize(tiny_llama(), "INT8_DEFAULT_CFG", token_batches(), quiet=True)
    quantizer = model.get_submodule("model.layers.0.mlp.up_proj.weight_quantizer")
    quantizer.low_rank_down, quantizer.low_rank_up = torch.ones(2, 128), torch.ones(256, 2)

    with pytest.raises(ExportError, match=r"low-rank corrections, found in model\.layers\.0\.mlp\.up_proj;"):
        plugins().exporter("compressed_tensors").export(model, tmp_path / "out", quiet=True)
