"""Damage to checkpoints that a reader would stumble over, as tests of verifiers do it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import octavo
from helpers.exporters_models import with_tensors
from octavo.core.verification.finding import Finding

Tensors = dict[str, Tensor]
LAYER = "model.layers.1.self_attn.k_proj"


def copied(source: Path, to: Path) -> Path:
    """Copy a checkpoint's own files, writable."""
    to.mkdir()
    for name in ("config.json", "hf_quant_config.json", "model.safetensors"):
        if (source / name).exists():
            shutil.copyfile(source / name, to / name)
    return to


def errors(directory: Path, consumer: str = "vllm") -> list[Finding]:
    return [f for f in octavo.verify_checkpoint(directory, consumer) if f.severity == "error"]


def warnings(directory: Path, consumer: str = "vllm") -> list[Finding]:
    return [f for f in octavo.verify_checkpoint(directory, consumer) if f.severity == "warning"]


def places(findings: list[Finding]) -> set[str]:
    return {finding.place for finding in findings}


def damaged(source: Path, to: Path, change: Callable[[Tensors], object]) -> Path:
    return with_tensors(copied(source, to), change)


def _renamed(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_scales"] = tensors.pop(f"{LAYER}.weight_scale")


def _wrong_scale_shape(tensors: Tensors) -> None:
    scale = tensors[f"{LAYER}.weight_scale"]
    tensors[f"{LAYER}.weight_scale"] = scale[:, :-1].contiguous() if scale.dim() == 2 else torch.ones(2)


def _nan_scale(tensors: Tensors) -> None:
    scale = tensors[f"{LAYER}.weight_scale"].clone()
    if scale.dtype == torch.float8_e4m3fn:
        scale.view(torch.uint8).view(-1)[0] = 0x7F
    else:
        scale.view(-1)[0] = float("nan")
    tensors[f"{LAYER}.weight_scale"] = scale


def _set(suffix: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], object]:
    name = f"{LAYER}.{suffix}"
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


# What is done to a copy, and the tensor that must be named.
DAMAGE: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "renamed": (_renamed, "weight_scale"),
    "no scale": (lambda tensors: tensors.pop(f"{LAYER}.weight_scale"), "weight_scale"),
    "no input scale": (lambda tensors: tensors.pop(f"{LAYER}.input_scale"), "input_scale"),
    "no weight": (lambda tensors: tensors.pop(f"{LAYER}.weight"), "weight"),
    "fewer rows": (_set("weight", lambda tensor: tensor[:-16]), "weight"),
    "scale of another shape": (_wrong_scale_shape, "weight_scale"),
    "extra": (lambda tensors: tensors.update({f"{LAYER}.smooth_factor": torch.ones(4)}), "smooth_factor"),
    "nan": (_nan_scale, "weight_scale"),
    "twice as wide": (_set("weight", lambda tensor: torch.cat([tensor] * 2, 1)), "weight"),
    "another dtype": (_set("weight", lambda tensor: tensor.view(torch.int8)), "weight"),
    "no input range": (_set("input_scale", torch.zeros_like), "input_scale"),
}
