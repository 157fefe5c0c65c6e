"""SVDQuant: what stays unrounded, the layers that are skipped, and the checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import octavo
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration.collectors import collecting
from octavo.core.modules import quantized_layers

Q_PROJ = "model.layers.0.self_attn.q_proj"


def svdquant(dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    config = octavo.merge_configs("NVFP4_SVDQUANT_DEFAULT_CFG")
    config["algorithm"] = {"method": "svdquant", "lowrank": 8, **options}
    return octavo.quantize(tiny_llama(dtype), config, token_batches(), quiet=True)


@torch.no_grad()
def test_the_low_rank_part_and_the_rest_are_the_weight() -> None:
    plain, model, ids = tiny_llama(), svdquant(), token_batches()[0]

    with collecting(model, {}):  # nothing is rounded
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    layer = model.get_submodule(Q_PROJ)
    smoothed = plain.get_submodule(Q_PROJ).weight / layer.input_quantizer.pre_quant_scale
    best = torch.linalg.svd(smoothed)[1][8:].square().sum()
    torch.testing.assert_close(layer.weight.square().sum(), best, rtol=1e-3, atol=0)
    assert layer.weight_quantizer.low_rank_down.shape == (8, 128)
    assert torch.equal(layer.weight_quantizer.global_amax, layer.weight.abs().max())


def test_skipped_layers_are_as_max_leaves_them() -> None:
    model, plain = svdquant(skip_layers=["*.q_proj"]), tiny_llama()

    layer = model.get_submodule(Q_PROJ)
    assert torch.equal(layer.weight, plain.get_submodule(Q_PROJ).weight)
    assert layer.weight_quantizer.low_rank_down is layer.input_quantizer.pre_quant_scale is None
    assert model.get_submodule(Q_PROJ.replace("q_proj", "k_proj")).weight_quantizer.low_rank_down is not None


def test_it_is_saved_and_restored(tmp_path: Path) -> None:
    model, ids = svdquant(), token_batches()[0]
    octavo.save(model, tmp_path / "saved")
    restored = octavo.restore(tiny_llama(), tmp_path / "saved")

    with torch.no_grad():
        assert torch.equal(restored(ids).logits, model(ids).logits)


def test_every_linear_layer_has_a_part() -> None:
    layers = [layer for name, layer in quantized_layers(svdquant()) if name.endswith("_proj")]
    assert len(layers) == 14
    assert all(layer.quantizers()["weight_quantizer"].stages()[0].low_rank_up is not None for layer in layers)
