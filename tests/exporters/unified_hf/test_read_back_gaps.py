"""Checkpoints of unusual models, read back as the model that was written."""

from __future__ import annotations

from pathlib import Path

import torch

import octavo
from helpers.exporters_models import (
    MLP,
    export,
    plain_model,
    tensors_of,
    tokens,
)


def test_a_layer_that_is_renamed_on_saving_reads_back_with_its_activations(tmp_path: Path) -> None:
    from helpers.adapters_models import tiny_model

    model = tiny_model("gpt_neox", tie_word_embeddings=False)
    rules = [
        {"quantizer_name": f"lm_head.{kind}_quantizer", "cfg": {"num_bits": (4, 3)}}
        for kind in ("weight", "input")
    ]
    octavo.quantize(model, {"quant_cfg": rules}, [tokens()], quiet=True)

    served = octavo.load_quantized(export(model, tmp_path / "out"))

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        assert torch.equal(served(tokens()).logits, model(tokens()).logits)


def test_a_layer_whose_input_was_always_zero_reads_back(tmp_path: Path) -> None:
    model = plain_model()
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.up_proj").weight.zero_()
    octavo.quantize(model, "FP8_DEFAULT_CFG", [tokens()], quiet=True)
    directory = export(model, tmp_path / "out")

    assert tensors_of(directory)[f"{MLP}.input_scale"] > 0
    octavo.load_quantized(directory)
