"""The checkpoints that ModelOpt 0.47 wrote, and ours made from the same model and data."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import octavo

# Derived from activations, whose last bits follow the machine's matrix kernels.
ACTIVATION_SCALES = (".input_scale", ".k_scale", ".v_scale")
BASES = ("dense", "tied", "moe")
# Every preset folder of these bases whose algorithm is `max` or none.
PRESETS = (
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "FP8_DEFAULT_CFG",
    "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "INT8_DEFAULT_CFG",
    "INT8_WEIGHT_ONLY_CFG",
    "MXFP4_DEFAULT_CFG",
    "MXFP8_DEFAULT_CFG",
    "NVFP4_DEFAULT_CFG",
    "NVFP4_DEFAULT_CFG+FP8_KV_CFG",
    "W4A16_NVFP4_CFG",
    "W4A8_MXFP4_FP8_CFG",
    "W4A8_NVFP4_FP8_CFG",
)
CASES = tuple(
    (base, preset)
    for base in BASES
    for preset in PRESETS
    if (base, preset) != ("moe", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG")  # not among the references
)


def folder(shared: Path, base: str) -> Path:
    return shared / "reference" / "modelopt" / base


def base_model(shared: Path, base: str, attention: str = "sdpa") -> nn.Module:
    path = folder(shared, base) / "base"
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, attn_implementation=attention
    )
    return model.eval()


def calibration_ids(shared: Path, base: str) -> Tensor:
    return load_file(folder(shared, base) / "calibration.safetensors")["input_ids"]


@lru_cache(maxsize=1)
def quantized_model(shared: Path, base: str, preset: str) -> nn.Module:
    model = base_model(shared, base)
    ids = calibration_ids(shared, base)
    config = octavo.merge_configs(*preset.split("+"))
    return octavo.quantize(model, config, list(ids.split(1)), quiet=True)


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids[:1, :64]).logits.float()


def median_token_distance(found: Tensor, expected: Tensor) -> float:
    """Return the median over tokens of the relative L2 distance between rows of logits."""
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()


def same_tensor(
    name: str, found: Tensor, expected: Tensor, activation_scales: tuple[str, ...] = ACTIVATION_SCALES
) -> bool:
    """Whether two tensors of a checkpoint are the same bytes, or nearly so where activations made them."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    if name.endswith(activation_scales):
        return torch.allclose(found, expected, rtol=2**-7, atol=0)
    return torch.equal(found.flatten().view(torch.uint8), expected.flatten().view(torch.uint8))


def metadata_of(path: Path) -> dict[str, Any]:
    """Return a JSON file without who wrote it and with which versions."""
    data: dict[str, Any] = json.loads(path.read_text())
    for part in (data, data.get("quantization_config", {})):
        part.pop("producer", None)
        part.pop("transformers_version", None)
    return data
