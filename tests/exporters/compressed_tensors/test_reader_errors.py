"""Damaged and foreign compressed-tensors checkpoints: each is refused with what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import MLP, export, quantized, with_json, with_tensors
from octavo.core.errors import CheckpointError


@pytest.fixture
def int4(tmp_path: Path) -> Path:
    config = octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)
    return export(quantized(config), tmp_path / "out", target="vllm")


DAMAGE: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "pack-quantized has weight_packed, weight_scale, weight_shape; found weight_packed, weight_scale": (
        lambda t: t.pop(f"{MLP}.weight_shape")
    ),
    "found weight_packed, weight_scale, weight_shape, weight_zero_point": (
        lambda t: t.update({f"{MLP}.weight_zero_point": torch.zeros(16, 8, dtype=torch.int32)})
    ),
    r"weight_shape \[128, 999\] does not fit \(128, 32\)": (
        lambda t: t.update({f"{MLP}.weight_shape": torch.tensor([128, 999])})
    ),
    r"weight_packed must be a matrix of torch.int32, found torch.int64 \(128, 32\)": (
        lambda t: t.update({f"{MLP}.weight_packed": t[f"{MLP}.weight_packed"].long()})
    ),
    r"weight_scale has shape \(128, 8\), found \(128, 4\)": (
        lambda t: t.update({f"{MLP}.weight_scale": t[f"{MLP}.weight_scale"][:, :4].contiguous()})
    ),
    "weight_scale must hold numbers other than 0, found 0.0": lambda t: t[f"{MLP}.weight_scale"].zero_(),
    "weight_scale has dtype torch.uint8, which is none for int4": (
        lambda t: t.update({f"{MLP}.weight_scale": torch.ones(128, 8, dtype=torch.uint8)})
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_tensors(int4: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(with_tensors(int4, DAMAGE[message]))


FOREIGN: dict[str, dict[str, Any]] = {
    "describes a format that is not read.*'symmetric': False": {"symmetric": False},
    "describes a format that is not read.*'num_bits': 3": {"num_bits": 3},
    "describes a format that is not read.*'actorder': 'static'": {"actorder": "static"},
    "format 'pack-quantized' of weights int4 block.* dynamic, inputs None is not read": {"dynamic": True},
}


@pytest.mark.parametrize("message", FOREIGN)
def test_foreign_formats(int4: Path, message: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["weights"].update(FOREIGN[message])

    with_json(int4 / "config.json", change)
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(int4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("config_groups", {}, r"one entry of config_groups is read, found \{\}"),
        ("config_groups", {"a": {"INT8": []}}, "config_groups must say how weights are quantized, found"),
        ("kv_cache_scheme", {"num_bits": 8}, r"a quantized cache is not read yet, found \{'num_bits': 8\}"),
    ],
)
def test_descriptions(int4: Path, field: str, value: object, message: str) -> None:
    with_json(int4 / "config.json", lambda config: config["quantization_config"].update({field: value}))
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(int4)


def test_an_input_scale_that_is_missing_or_no_number(tmp_path: Path) -> None:
    folder = export(quantized("INT8_DEFAULT_CFG"), tmp_path / "out", target="vllm")
    name = f"{MLP}.input_scale"
    with pytest.raises(
        CheckpointError,
        match=rf"{name}' must be one positive number, found tensor\(\[-1\.\]\)|input_scale.*must be one positive",
    ):
        octavo.load_quantized(with_tensors(folder, lambda t: t.update({name: torch.tensor([-1.0])})))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is missing, which its format needs"):
        octavo.load_quantized(with_tensors(folder, lambda t: t.pop(name)))
