"""Tiny quantized models with random factors on the inputs of their linear layers."""

from __future__ import annotations

import torch
from torch import nn

import octavo
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration.smoothing_state import smooth
from octavo.core.modules import quantized_layers
from octavo.core.modules.linear import QuantLinear

PRESETS = ("INT8_SMOOTHQUANT_CFG", "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG", "NVFP4_AWQ_LITE_CFG")


def smoothed(preset: str, model: nn.Module | None = None, same_factors: bool = False) -> nn.Module:
    """Return a model quantized by `preset`, its linear layers smoothed; layers of one width alike if `same_factors`."""
    model = tiny_llama(torch.bfloat16) if model is None else model
    config = {**octavo.merge_configs(preset), "algorithm": "max"}
    model = octavo.quantize(model, config, token_batches(), quiet=True)
    generator = torch.Generator().manual_seed(3)
    for name, layer in quantized_layers(model):
        if isinstance(layer, QuantLinear):
            if same_factors:
                generator.manual_seed(3)
            factor = torch.rand(layer.in_features, generator=generator) + 0.5
            smooth(name, layer, factor, torch.full_like(factor, 3.0))
    return model
