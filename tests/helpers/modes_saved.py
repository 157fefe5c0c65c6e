"""Quantized models to save, and saved folders to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import octavo
from helpers.tiny import tiny_llama, token_batches

WITH_KV = "FP8_DEFAULT_CFG+FP8_KV_CFG"


def plain(**changes: Any) -> nn.Module:
    return tiny_llama(num_hidden_layers=1, **changes)


def scrambled(**changes: Any) -> nn.Module:
    """A plain model of the class with other weights: what is right afterwards came from the folder."""
    model = plain(**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-3)
    return model


def quantized(presets: str = WITH_KV, **changes: Any) -> nn.Module:
    config = octavo.merge_configs(*presets.split("+"))
    return octavo.quantize(plain(**changes), config, token_batches(1), quiet=True)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(token_batches(2)[1]).logits
    return found


def edit_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "octavo_modes.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
