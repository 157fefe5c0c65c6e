"""Damaged checkpoints that the reader takes for whole, or trips over: each should be a CheckpointError."""

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


@pytest.mark.xfail(strict=True, reason="codes are copied into the weight as if they were values")
@pytest.mark.parametrize(
    "preset", ["FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "MXFP8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG"]
)
def test_codes_without_their_scale(preset: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{MLP}.*weight_scale"):
        reading(preset, tmp_path / "out", lambda tensors: tensors.pop(f"{MLP}.weight_scale"))


@pytest.mark.xfail(
    strict=True, reason="'has shape (128, 128), the model's has (128, 256)': the missing scale is not named"
)
def test_packed_codes_without_their_scale_name_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{MLP}.weight_scale"):
        reading("NVFP4_DEFAULT_CFG", tmp_path / "out", lambda tensors: tensors.pop(f"{MLP}.weight_scale"))


@pytest.mark.xfail(strict=True, reason="E8M0 255 is NaN, and is not looked for")
def test_nan_exponents(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="weight_scale holds NaN"):
        reading(
            "MXFP8_DEFAULT_CFG", tmp_path / "out", lambda tensors: tensors[f"{MLP}.weight_scale"].fill_(255)
        )


@pytest.mark.xfail(
    strict=True,
    reason="any shape is multiplied as it broadcasts: (16,) gives every block its own, (2,) a RuntimeError",
)
@pytest.mark.parametrize("length", [2, 16])
def test_a_second_level_scale_of_several_numbers(length: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"weight_scale_2.*\({length},\)"):
        reading(
            "NVFP4_DEFAULT_CFG",
            tmp_path / "out",
            lambda tensors: tensors.update({f"{MLP}.weight_scale_2": torch.ones(length)}),
        )


@pytest.mark.xfail(
    strict=True, reason="found (1,), where vLLM, SGLang and the reader's own activation scales take it"
)
def test_a_scalar_weight_scale_of_shape_one_is_read(tmp_path: Path) -> None:
    def reshape(tensors: Tensors) -> None:
        tensors[f"{MLP}.weight_scale"] = tensors[f"{MLP}.weight_scale"].reshape(1)

    reading("FP8_DEFAULT_CFG", tmp_path / "out", reshape)


@pytest.mark.xfail(
    strict=True, reason="any four numbers are taken for the scales of a 2 x 2 grid, in whatever order"
)
def test_square_blocks_in_another_order(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.weight_scale"
    directory = export(quantized("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"), tmp_path / "out")
    assert tensors_of(directory)[name].shape == (2, 1, 1, 1)

    with pytest.raises(CheckpointError, match=r"gate_proj.*\(1, 1, 2, 1\)"):
        octavo.load_quantized(
            with_tensors(directory, lambda tensors: tensors.update({name: tensors[name].reshape(1, 1, 2, 1)}))
        )


@pytest.mark.xfail(strict=True, reason="RuntimeError from reshape")
def test_square_blocks_of_another_number(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{MLP}.*scale"):
        reading(
            "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
            tmp_path / "out",
            lambda tensors: tensors.update({f"{MLP}.weight_scale": torch.ones(3)}),
        )


@pytest.mark.xfail(
    strict=True, reason="the block length is derived from whatever scales there are; group_size is not read"
)
@pytest.mark.parametrize("columns", [7, 8])
def test_open_block_lengths_are_those_of_the_metadata(columns: int, tmp_path: Path) -> None:
    def cut(tensors: Tensors) -> None:
        scale = tensors[f"{MLP}.weight_scale"]
        assert scale.shape == (128, 16)
        tensors[f"{MLP}.weight_scale"] = scale.view(torch.uint8)[:, :columns].contiguous().view(scale.dtype)

    with pytest.raises(CheckpointError, match=rf"{MLP}.*\(128, {columns}\)"):
        reading("W4A16_NVFP4_CFG", tmp_path / "out", cut)


@pytest.mark.xfail(strict=True, reason="IndexError: tuple index out of range")
@pytest.mark.parametrize("shape", [(-1,), ()])
def test_a_weight_that_is_no_matrix(shape: tuple[int, ...], tmp_path: Path) -> None:
    def flatten(tensors: Tensors) -> None:
        weight = tensors[f"{MLP}.weight"].flatten()
        tensors[f"{MLP}.weight"] = weight if shape else weight[0].clone()

    with pytest.raises(CheckpointError, match=f"{MLP}.weight"):
        reading("FP8_DEFAULT_CFG", tmp_path / "out", flatten)
