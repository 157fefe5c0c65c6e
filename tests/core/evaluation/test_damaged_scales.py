"""Scales that are missing, or belong to no layer, are refused: codes without them mean something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.evaluation_checkpoints import changed_copy, quantized
from helpers.tiny import tiny_llama
from octavo.core.errors import CheckpointError

Q = "model.layers.0.self_attn.q_proj"
K_SCALE = "model.layers.0.self_attn.k_proj.k_scale"
Change = Callable[[dict[str, Tensor]], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoint") / "out"
    model = quantized(tiny_llama(torch.bfloat16, num_hidden_layers=1), "FP8_DEFAULT_CFG+FP8_KV_CFG")
    octavo.export_hf_checkpoint(model, export_dir=place, quiet=True)
    return place


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(folder)


def test_a_missing_input_scale_is_named(good: Path, tmp_path: Path) -> None:
    folder = changed_copy(good, tmp_path / "out", lambda tensors: tensors.pop(f"{Q}.input_scale"))

    refused(folder, f"tensor '{re.escape(Q)}.input_scale' is missing, which its format needs$")


SILENT: dict[str, tuple[Change, str]] = {
    "weight_scale": (lambda t: t.pop(f"{Q}.weight_scale"), f"{Q}.weight_scale"),
    "k_scale": (lambda t: t.pop(K_SCALE), K_SCALE),
    "surplus input_scale": (
        lambda t: t.update({"surplus.input_scale": torch.ones(())}),
        "surplus.input_scale",
    ),
}


@pytest.mark.parametrize("kind", SILENT)
def test_a_missing_or_unexpected_scale_is_named(good: Path, tmp_path: Path, kind: str) -> None:
    change, name = SILENT[kind]
    folder = changed_copy(good, tmp_path / "out", change)

    refused(folder, re.escape(name))


@pytest.mark.parametrize("name", [f"{Q}.weight_scale", K_SCALE])
def test_a_scale_that_the_manifest_knows_is_missed(good: Path, tmp_path: Path, name: str) -> None:
    folder = changed_copy(good, tmp_path / "out", lambda tensors: tensors.pop(name), keep_manifest=True)

    refused(folder, re.escape(name))


RAW: dict[str, Change] = {
    "weight and input scale of no layer": lambda t: t.update(
        {"surplus.weight_scale": torch.ones(()), "surplus.input_scale": torch.ones(())}
    ),
    "key scale of no layer": lambda t: t.update({"surplus.k_proj.k_scale": torch.ones(())}),
}


@pytest.mark.parametrize("kind", RAW)
def test_scales_of_a_layer_that_the_model_does_not_have_are_refused(
    good: Path, tmp_path: Path, kind: str
) -> None:
    refused(changed_copy(good, tmp_path / "out", RAW[kind]), "surplus")
