"""Damage to one tensor of a checkpoint, and what the reader must say of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import MLP, Config, export, quantized, with_tensors
from octavo.core.errors import CheckpointError

Tensors = dict[str, Tensor]


def missing(suffix: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{MLP}.{suffix}")


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], object]:
    full = name if name.startswith("model.") else f"{MLP}.{name}"
    return lambda tensors: tensors.update({full: change(tensors[full]).contiguous()})


def filled(name: str, value: float) -> Callable[[Tensors], object]:
    return changed(name, lambda tensor: torch.full_like(tensor, value))


def cut(tensor: Tensor) -> Tensor:
    """Leave out the last row."""
    return tensor[:-1]


def nan_bytes(tensor: Tensor) -> Tensor:
    """Return E4M3's NaN."""
    return torch.full_like(tensor.view(torch.uint8), 0x7F).view(tensor.dtype)


def is_damaged(config: Config, change: Callable[[Tensors], object], directory: Path, message: str) -> None:
    """Expect `message`, with {file} and {weight} filled in, for the checkpoint of `config` after `change`."""
    with_tensors(export(quantized(config), directory), change)
    pattern = message.format(
        file=re.escape(f"{directory / 'model.safetensors'}: tensor"), weight=f"'{MLP}.weight'"
    )

    with pytest.raises(CheckpointError, match=pattern):
        octavo.load_quantized(directory)
