"""The bytes of every preset's checkpoint stand for the finalized model's weights, by a decoder of our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import octavo
from helpers.exporters_models import ALGORITHMS, export, quantized
from octavo.core.modules import quantized_layers
from oracles import unified_hf as oracle

DTYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("preset", ALGORITHMS)
def test_bytes_stand_for_the_finalized_weights(preset: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = quantized(preset, dtype)
    directory = export(model, tmp_path / "out")
    tensors = oracle.read_tensors(directory)
    modules = oracle.quantized_modules(tensors)

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        fake = {
            name: layer.weight_quantizer(layer.weight).float().numpy()
            for name, layer in quantized_layers(model)
        }

    assert {oracle.quant_algo_of(directory, module) for module in modules} == {ALGORITHMS[preset].upper()}
    assert set(modules) == fake.keys()
    for module in modules:
        stored = oracle.as_bits(oracle.dequantize(directory, tensors, module), DTYPES[dtype])
        np.testing.assert_array_equal(stored, oracle.as_bits(fake[module], DTYPES[dtype]), err_msg=module)


@pytest.mark.parametrize("preset", ALGORITHMS)
def test_what_is_read_back_computes_what_the_finalized_model_does(preset: str, tmp_path: Path) -> None:
    model = quantized(preset, torch.bfloat16)
    served = octavo.load_quantized(export(model, tmp_path / "out"))
    ids = torch.arange(3, 20)[None]

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        assert torch.equal(served(ids).logits, model(ids).logits)
