"""Scales of activations and caches are one positive number each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from helpers.exporters_damage import changed, filled, is_damaged
from helpers.exporters_models import MLP, export, quantized, with_tensors

KV = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")

K_SCALE = "model.layers.0.self_attn.k_proj.k_scale"


@pytest.mark.parametrize("name", [f"{MLP}.input_scale", K_SCALE])
@pytest.mark.parametrize("value", [0.0, -0.5, torch.nan, torch.inf], ids=str)
def test_activation_scales_are_positive_numbers(name: str, value: float, tmp_path: Path) -> None:
    is_damaged(
        KV,
        filled(name, value),
        tmp_path / "out",
        f"^{{file}} '{name}' must be one positive number, found {value}$",
    )


def test_an_activation_scale_is_one_number(tmp_path: Path) -> None:
    change = changed("input_scale", lambda scale: scale.expand(2))
    is_damaged(KV, change, tmp_path / "out", f"'{MLP}.input_scale' must be one positive number, found tensor")


def test_activation_scales_of_shape_one_are_read(tmp_path: Path) -> None:
    directory = export(quantized(KV), tmp_path / "out")
    expected = octavo.load_quantized(directory).state_dict()
    with_tensors(directory, lambda tensors: tensors.update({K_SCALE: tensors[K_SCALE].reshape(1)}))
    with_tensors(directory, changed("input_scale", lambda scale: scale.reshape(1)))

    found = octavo.load_quantized(directory).state_dict()

    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
