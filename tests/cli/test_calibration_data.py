"""Calibration data: which samples are taken, and how long, shows in the scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.cli_runner import CALIBRATION, DATA, MODEL, Run
from helpers.exporters_models import digests

FP8 = ("quantize", MODEL, "--preset", "FP8_DEFAULT_CFG")


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def input_scales(directory: Path) -> dict[str, float]:
    return {name: float(scale) for name, scale in tensors(directory).items() if name.endswith("input_scale")}


def test_the_seed_chooses_the_samples(octavo_command: Run, tmp_path: Path) -> None:
    scales = {}
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        octavo_command(*FP8, *DATA, "--seed", seed, "--out", tmp_path / name)
        scales[name] = input_scales(tmp_path / name)

    assert scales["a"] != scales["b"]
    assert digests(tmp_path / "a") == digests(tmp_path / "c")


@pytest.mark.parametrize(
    ("option", "value"), [("--calib-size", 2), ("--seq-len", 16)], ids=["fewer samples", "shorter samples"]
)
def test_less_data_gives_other_scales(octavo_command: Run, tmp_path: Path, option: str, value: int) -> None:
    octavo_command(*FP8, *DATA, "--out", tmp_path / "all")
    octavo_command(*FP8, *DATA, option, value, "--out", tmp_path / "less")

    assert input_scales(tmp_path / "all") != input_scales(tmp_path / "less")


def test_batches_of_another_size_see_the_same_tokens(octavo_command: Run, tmp_path: Path) -> None:
    data = ("--calib-data", CALIBRATION, "--calib-size", 4, "--seq-len", 16)
    for size in (1, 4):
        octavo_command(*FP8, *data, "--batch-size", size, "--out", tmp_path / str(size))
    one, four = (tensors(tmp_path / size) for size in ("1", "4"))

    assert one.keys() == four.keys()  # matrix kernels add up in another order, by the number of rows
    for name in one:
        assert torch.allclose(one[name].float(), four[name].float(), rtol=1e-5), name
