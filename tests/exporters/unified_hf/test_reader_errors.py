"""Checkpoints that do not fit their metadata: file and tensor are named, with what was found and expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_damage import changed, cut, filled, is_damaged, missing, nan_bytes
from helpers.exporters_models import MLP, export, quantized, with_tensors
from octavo.core.errors import CheckpointError

INT4 = octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 64)
Tensors = dict[str, Tensor]


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            "NVFP4_DEFAULT_CFG",
            missing("weight_scale_2"),
            "^{file} {weight}: weight_scale_2 is missing, which e2m1",
        ),
        ("FP8_DEFAULT_CFG", missing("input_scale"), f"tensor '{MLP}.input_scale' is missing"),
        ("FP8_DEFAULT_CFG", missing("weight"), f"missing {MLP}.weight; unexpected nothing"),
    ],
    ids=["weight_scale_2", "input_scale", "weight"],
)
def test_a_missing_tensor(
    config: str, change: Callable[[Tensors], object], message: str, tmp_path: Path
) -> None:
    is_damaged(config, change, tmp_path / "out", message)


@pytest.mark.parametrize(
    ("config", "suffix", "found", "expected"),
    [
        ("FP8_DEFAULT_CFG", "weight", torch.float32, torch.float8_e4m3fn),
        ("INT8_DEFAULT_CFG", "weight", torch.uint8, torch.int8),
        ("NVFP4_DEFAULT_CFG", "weight", torch.int8, torch.uint8),
        ("FP8_DEFAULT_CFG", "weight_scale", torch.bfloat16, torch.float32),
        ("NVFP4_DEFAULT_CFG", "weight_scale", torch.float32, torch.float8_e4m3fn),
        ("MXFP8_DEFAULT_CFG", "weight_scale", torch.float32, torch.uint8),
        ("NVFP4_DEFAULT_CFG", "weight_scale_2", torch.float16, torch.float32),
    ],
    ids=str,
)
def test_a_wrong_dtype(
    config: str, suffix: str, found: torch.dtype, expected: torch.dtype, tmp_path: Path
) -> None:
    message = f"^{{file}} {{weight}}: {suffix} has dtype {found}, expected {expected} for "
    is_damaged(config, changed(suffix, lambda tensor: tensor.to(found)), tmp_path / "out", message)


CHANNELS = r"scale of a tensor \(128, 256\) packed as int8 channel0 has shape \(128,\), found \(127,\)"
BLOCKS = r"scale of a tensor \(128, 256\) packed as e2m1 .* has shape \(128, 16\), found \(127, 16\)"
ROWS = r"scale of a tensor \(126, 256\) packed as int4 .* has shape \(126, 4\), found \(128, 4\)"


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("INT8_DEFAULT_CFG", changed("weight_scale", cut), CHANNELS),
        ("NVFP4_DEFAULT_CFG", changed("weight_scale", cut), BLOCKS),
        (INT4, changed("weight", cut), ROWS),
        (
            "FP8_DEFAULT_CFG",
            changed("weight_scale", lambda scale: scale.expand(2)),
            r"has shape \(\), found \(2,\)",
        ),
        (
            "FP8_DEFAULT_CFG",
            changed("weight", lambda w: w[None]),
            r"must be a matrix, found shape \(1, 128, 256\)",
        ),
    ],
    ids=["channels", "blocks", "int4 rows", "two scalars", "stacked weights"],
)
def test_a_wrong_shape(
    config: object, change: Callable[[Tensors], object], message: str, tmp_path: Path
) -> None:
    is_damaged(config, change, tmp_path / "out", "^{file} {weight}.*" + message)


def test_a_weight_of_another_shape_than_the_models(tmp_path: Path) -> None:
    message = rf"'{MLP}.weight' has shape \(127, 256\), the model's has \(128, 256\)"
    is_damaged("FP8_DEFAULT_CFG", changed("weight", cut), tmp_path / "out", message)


@pytest.mark.parametrize(
    ("config", "change", "suffix"),
    [
        ("FP8_DEFAULT_CFG", filled("weight_scale", torch.nan), "weight_scale"),
        ("INT8_DEFAULT_CFG", filled("weight_scale", torch.inf), "weight_scale"),
        ("NVFP4_DEFAULT_CFG", changed("weight_scale", nan_bytes), "weight_scale"),
        ("NVFP4_DEFAULT_CFG", filled("weight_scale_2", -torch.inf), "weight_scale_2"),
        ("MXFP8_DEFAULT_CFG", filled("weight_scale", 255), "weight_scale"),  # E8M0's NaN
    ],
)
def test_scales_that_are_no_numbers(
    config: str, change: Callable[[Tensors], object], suffix: str, tmp_path: Path
) -> None:
    is_damaged(
        config, change, tmp_path / "out", f"^{{file}} {{weight}}: {suffix} holds NaN or infinite scales$"
    )


@pytest.mark.parametrize(
    ("config", "suffix"), [("FP8_DEFAULT_CFG", "weight_scale"), ("NVFP4_DEFAULT_CFG", "weight_scale_2")]
)
def test_negative_scales(config: str, suffix: str, tmp_path: Path) -> None:
    message = f"^{{file}} {{weight}}: {suffix} holds negative scales$"
    is_damaged(config, filled(suffix, -1.0), tmp_path / "out", message)


def test_a_second_level_in_a_format_of_one(tmp_path: Path) -> None:
    directory = export(quantized(INT4), tmp_path / "out")
    with_tensors(directory, lambda tensors: tensors.update({f"{MLP}.weight_scale_2": torch.ones(())}))

    with pytest.raises(
        CheckpointError, match=rf"'{MLP}.weight': int4 .* has weight, weight_scale; found .*_2$"
    ):
        octavo.load_quantized(directory)


def test_a_damaged_byte_is_found_by_the_manifest(tmp_path: Path) -> None:
    directory = export(quantized("FP8_DEFAULT_CFG"), tmp_path / "out")
    manifest = (directory / "octavo_manifest.json").read_text()
    with_tensors(
        directory, changed("weight", lambda weight: weight.view(torch.uint8).flip(0).view(weight.dtype))
    )
    (directory / "octavo_manifest.json").write_text(manifest)

    with pytest.raises(
        CheckpointError, match=rf"{directory}/model.safetensors: tensor '{MLP}.weight' is damaged"
    ):
        octavo.load_quantized(directory)
