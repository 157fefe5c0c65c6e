"""Exported tiny models, and copies of them to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import octavo
from helpers.tiny import token_batches


def quantized(model: nn.Module, presets: str) -> nn.Module:
    return octavo.quantize(model, octavo.merge_configs(*presets.split("+")), token_batches(), quiet=True)


def changed_copy(
    folder: Path, to: Path, change: Callable[[dict[str, Tensor]], Any], keep_manifest: bool = False
) -> Path:
    """Copy a checkpoint with its tensors changed; other tools write no manifest, so it is left out."""
    shutil.copytree(folder, to)
    tensors = {name: tensor.clone() for name, tensor in load_file(to / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    if not keep_manifest:
        (to / "octavo_manifest.json").unlink()
    return to


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
