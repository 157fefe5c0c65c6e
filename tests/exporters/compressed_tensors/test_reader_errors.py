"""Damaged and foreign compressed-tensors checkpoints: each is refused with what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.compressed_tensors_cases import CASES
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
    "describes a format that is not read.*'num_bits': 9": {"num_bits": 9},
    "describes a format that is not read.*'actorder': 'group'": {"actorder": "group"},
    "describes a format that is not read.*'type': 'float'": {"type": "float", "group_size": 64},
    "describes a format that is not read.*'group_size': 0": {"group_size": 0},
    "describes a format that is not read.*'strategy': 'block'": {
        "strategy": "block",
        "block_structure": [64, 64],
    },
    r"weight_shape \[128, 256\] does not fit \(128, 32\)": {"num_bits": 3},
    "pack-quantized has .*, weight_zero_point; found weight_packed, weight_scale, weight_shape": {
        "symmetric": False
    },
    "format 'pack-quantized' of weights int4 block.* dynamic, inputs None is not read": {"dynamic": True},
}


@pytest.mark.parametrize("message", FOREIGN)
def test_foreign_formats(int4: Path, message: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["weights"].update(FOREIGN[message])

    with_json(int4 / "config.json", change)
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(int4)


def group(**changes: Any) -> dict[str, Any]:
    """Return a group of INT4 weights with one thing wrong."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    return {"targets": ["Linear"], "weights": weights, "input_activations": None, **changes}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("config_groups", {}, r"config_groups must name groups of layers, found \{\}"),
        ("config_groups", {"a": {"INT8": []}}, "config_groups must say how weights are quantized, found"),
        (
            "config_groups",
            {"a": group(targets="Linear")},
            "targets of a group must be a list of names, found 'Linear'",
        ),
        ("config_groups", {"a": group(targets=["re:(q"])}, r"target 're:\(q' is no pattern: missing \)"),
        (
            "config_groups",
            {"a": group(targets=["re:.*q_proj"])},
            r"down_proj has scales, and no group of config_groups targets it; found targets \[\['re:\.\*q_proj'\]\]",
        ),
        (
            "config_groups",
            {"a": group(output_activations={"num_bits": 8})},
            "quantized outputs are not read, found",
        ),
        (
            "config_groups",
            {"a": group(format="int-quantized")},
            "format 'int-quantized' of weights int4 .* not read",
        ),
        (
            "kv_cache_scheme",
            {"num_bits": 8},
            r"a cache of e4m3 with one scale for each layer is read, found \{'num_b",
        ),
        (
            "quantization_status",
            "frozen",
            "checkpoints with quantization_status 'compressed' are read, found 'frozen'",
        ),
        (
            "sparsity_config",
            {"format": "sparse-24-bitmask"},
            "a checkpoint with sparsity_config is not read, found",
        ),
        (
            "transform_config",
            {"config_groups": {"u": 1}},
            "a checkpoint with transform_config is not read, found",
        ),
    ],
)
def test_descriptions(int4: Path, field: str, value: object, message: str) -> None:
    with_json(int4 / "config.json", lambda config: config["quantization_config"].update({field: value}))
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(int4)


LOST: dict[str, tuple[str, str, str]] = {
    "codes without a scale": (
        "W4A16", f"{MLP}.weight_scale",
        rf"has weight_packed, weight_shape of the "
        rf"quantized layer {MLP} and lacks {MLP}\.weight_scale, without which its codes stand for no numbers",
    ),
    "whole codes without a scale": (
        "FP8 channel", f"{MLP}.weight_scale", rf"has weight of the quantized layer {MLP} and lacks {MLP}\.weight_scale",
    ),
    "a divisor": (
        "NVFP4", f"{MLP}.weight_global_scale",
        "nvfp4-pack-quantized has weight_packed, weight_scale, weight_global_scale; found weight_packed, weight_scale",
    ),
    "an input's divisor": (
        "NVFP4", f"{MLP}.input_global_scale", rf"tensor '{MLP}\.input_global_scale' is missing, which its format needs",
    ),
    "the values' scale": (
        "FP8 with a cache", "model.layers.1.self_attn.v_scale",
        r"tensor 'model\.layers\.1\.self_attn\.v_scale' is missing, which its format needs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_a_missing_scale_is_named(case: str, tmp_path: Path) -> None:
    format_name, lost, message = LOST[case]
    exporter = octavo.plugins().exporter("compressed_tensors")
    exporter.export(quantized(CASES[format_name][0]), tmp_path / "out", quiet=True)
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(with_tensors(tmp_path / "out", lambda tensors: tensors.pop(lost)))


WRONG: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    r"weight_global_scale must be one positive number, found tensor\(\[-1\.\]\)": (
        "NVFP4", "weight_global_scale", lambda scale: torch.full_like(scale, -1),
    ),
    "input_global_scale' must be one positive number": (
        "NVFP4", "input_global_scale", lambda scale: scale * torch.inf,
    ),
    r"weight_scale has dtype torch.float32, which is none for e2m1": (
        "NVFP4", "weight_scale", lambda scale: scale.float(),
    ),
    r"weight_scale has shape \(1, 2\), found \(2, 1\)": ("FP8 block", "weight_scale", lambda scale: scale.T),
    "weight holds codes beyond those of int4": ("W4A8", "weight", lambda codes: codes + 8),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_tensor_is_named(message: str, tmp_path: Path) -> None:
    format_name, part, change = WRONG[message]
    name = f"{MLP}.{part}"
    exporter = octavo.plugins().exporter("compressed_tensors")
    exporter.export(quantized(CASES[format_name][0]), tmp_path / "out", quiet=True)
    with_tensors(tmp_path / "out", lambda tensors: tensors.update({name: change(tensors[name]).contiguous()}))
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(tmp_path / "out")


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
