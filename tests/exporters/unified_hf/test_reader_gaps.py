"""Damage that would go unseen, or be read as something else: each is a CheckpointError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import MLP, export, quantized, tensors_of, with_tensors
from octavo.core.errors import CheckpointError

Tensors = dict[str, Tensor]


def reading(config: object, directory: Path, change: Callable[[Tensors], object]) -> None:
    octavo.load_quantized(with_tensors(export(quantized(config), directory), change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "preset",
    ["FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "MXFP8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG", "NVFP4_DEFAULT_CFG"],
)
def test_codes_without_their_scale(preset: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{MLP}.weight_scale"):
        reading(preset, tmp_path / "out", lambda tensors: tensors.pop(f"{MLP}.weight_scale"))


@pytest.mark.parametrize("length", [2, 16])
def test_a_second_level_scale_of_several_numbers(length: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"weight_scale_2.*\({length},\)"):
        reading(
            "NVFP4_DEFAULT_CFG",
            tmp_path / "out",
            lambda tensors: tensors.update({f"{MLP}.weight_scale_2": torch.ones(length)}),
        )


def test_a_scalar_weight_scale_of_shape_one_is_read(tmp_path: Path) -> None:
    def reshape(tensors: Tensors) -> None:
        tensors[f"{MLP}.weight_scale"] = tensors[f"{MLP}.weight_scale"].reshape(1)

    reading("FP8_DEFAULT_CFG", tmp_path / "out", reshape)


def test_square_blocks_in_another_order(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.weight_scale"
    directory = export(quantized("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"), tmp_path / "out")
    assert tensors_of(directory)[name].shape == (2, 1, 1, 1)

    with pytest.raises(CheckpointError, match=r"gate_proj.*\(1, 1, 2, 1\)"):
        octavo.load_quantized(
            with_tensors(directory, lambda tensors: tensors.update({name: tensors[name].reshape(1, 1, 2, 1)}))
        )


def test_square_blocks_of_another_number(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{MLP}.*scale"):
        reading(
            "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
            tmp_path / "out",
            lambda tensors: tensors.update({f"{MLP}.weight_scale": torch.ones(3)}),
        )


@pytest.mark.parametrize("columns", [7, 8])
def test_open_block_lengths_are_those_of_the_metadata(columns: int, tmp_path: Path) -> None:
    def cut(tensors: Tensors) -> None:
        scale = tensors[f"{MLP}.weight_scale"]
        assert scale.shape == (128, 16)
        tensors[f"{MLP}.weight_scale"] = scale.view(torch.uint8)[:, :columns].contiguous().view(scale.dtype)

    with pytest.raises(CheckpointError, match=rf"{MLP}.*\(128, {columns}\)"):
        reading("W4A16_NVFP4_CFG", tmp_path / "out", cut)


def test_input_scales_of_weight_only_layers_are_left_aside_as_engines_do(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors[f"{MLP}.input_scale"] = torch.ones(())

    reading("W4A16_NVFP4_CFG", tmp_path / "out", add)


@pytest.mark.parametrize("suffix", ["input_scale", "weight_scale_2"])
def test_a_scale_of_no_quantized_layer(suffix: str, tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors[f"lm_head.{suffix}"] = torch.ones(())

    with pytest.raises(CheckpointError, match=rf"has lm_head\.{suffix} and lacks lm_head\.weight_scale"):
        reading("NVFP4_DEFAULT_CFG", tmp_path / "out", add)


@pytest.mark.parametrize("shape", [(-1,), ()])
def test_a_weight_that_is_no_matrix(shape: tuple[int, ...], tmp_path: Path) -> None:
    def flatten(tensors: Tensors) -> None:
        weight = tensors[f"{MLP}.weight"].flatten()
        tensors[f"{MLP}.weight"] = weight if shape else weight[0].clone()

    with pytest.raises(CheckpointError, match=f"{MLP}.weight"):
        reading("FP8_DEFAULT_CFG", tmp_path / "out", flatten)
