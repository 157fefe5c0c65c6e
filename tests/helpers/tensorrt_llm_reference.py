"""ModelOpt's TensorRT-LLM checkpoints, and our models made from the same model and data."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.reference import base_model, folder, quantized_model
from helpers.smoothed_reference import exact_factor, smoothed_model
from octavo.core.calibration.smoothing_state import smooth
from octavo.core.modules import quantized_layers

PRESETS = (
    "FP8_DEFAULT_CFG",
    "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "INT4_AWQ_CFG",
    "INT8_SMOOTHQUANT_CFG",
    "INT8_WEIGHT_ONLY_CFG",
    "NVFP4_DEFAULT_CFG",
    "W4A8_AWQ_BETA_CFG",
)
_SMOOTHED = ("INT4_AWQ_CFG", "INT8_SMOOTHQUANT_CFG", "W4A8_AWQ_BETA_CFG")
_UNSHARED = {
    "gate_proj": "fc",
    "up_proj": "gate",
}  # layers whose factors the other dialect averages, and this does not


def reference_folder(shared: Path, preset: str, layout: str) -> Path:
    return shared / "reference" / "modelopt" / "dense-trtllm" / preset / layout


def reference_model(shared: Path, preset: str) -> nn.Module:
    """Return the base model, quantized; smoothed with the peer's factors and input maxima."""
    if preset not in _SMOOTHED:
        return quantized_model(shared, "dense", preset)
    model = smoothed_model(shared, "dense", preset)
    if (
        preset != "INT8_SMOOTHQUANT_CFG"
    ):  # whose factors follow from the input alone, so that both layers have one
        _set_own_factors(shared, preset, model)
    return model


def _set_own_factors(shared: Path, preset: str, model: nn.Module) -> None:
    """Give the MLP's first layers the factors that explain the codes of this dialect, where each keeps its own."""
    inputs = load_file(folder(shared, "dense") / preset / "quantizer_state.safetensors")
    layers = dict(quantized_layers(model))
    for name, factor in _own_factors(shared).items():
        smooth(name, layers[name], factor, torch.ones_like(factor))
        if (amax := inputs.get(f"{name}.input_quantizer._amax")) is not None:
            layers[name].input_quantizer.set_state(amax=amax.float())


@lru_cache(maxsize=1)
def _own_factors(shared: Path) -> dict[str, Tensor]:
    source = "INT4_AWQ_CFG"  # the references of both AWQ presets have the same factors
    stored = load_file(reference_folder(shared, source, "tp1pp1") / "rank0.safetensors")
    smoothed = load_file(folder(shared, "dense") / source / "quantizer_state.safetensors")
    found = {}
    for name, layer in base_model(shared, "dense").named_modules():
        own = _UNSHARED.get(name.rpartition(".")[2])
        if own is None:
            continue
        ours = f"transformer.layers.{name.split('.')[2]}.mlp.{own}"
        codes = {
            f"{name}.weight": stored[f"{ours}.weight"].view(torch.uint8),
            f"{name}.weight_scale": stored[f"{ours}.weights_scaling_factor"],
        }
        rounded = stored[f"{ours}.prequant_scaling_factor"]
        amax = smoothed[f"{name}.weight_quantizer._amax"].float()
        found[name] = exact_factor(layer.weight.detach(), rounded, rounded, amax, name, codes)
    return found
