"""`verify` over our compressed-tensors files, intact and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import export, json_of, quantized, with_json
from helpers.family_cases import family_cases
from helpers.verification import LAYER, Tensors, copied, damaged, errors, places, warnings

CONFIGS: dict[str, tuple[Any, str]] = {
    "INT8": ("INT8_DEFAULT_CFG", "vllm"),
    "W8A16": ("INT8_WEIGHT_ONLY_CFG", "vllm"),
    "W4A16": (octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32), "vllm"),
    "FP8": ("FP8_DEFAULT_CFG", "transformers"),
    "FP8 channel": ("FP8_PER_CHANNEL_PER_TOKEN_CFG", "transformers"),
    "MXFP4": ("MXFP4_MLP_WEIGHT_ONLY_CFG", "vllm"),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a checkpoint by the name of its config; not to be changed."""
    folder = tmp_path_factory.mktemp("compressed")

    def made(name: str) -> Path:
        config, target = CONFIGS[name]
        if not (folder / name).exists():
            export(quantized(config, torch.bfloat16), folder / name, target=target)
        return folder / name

    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_intact_exports_have_no_errors(exports: Callable[[str], Path], name: str) -> None:
    for consumer in ("vllm", "sglang", "transformers"):
        assert errors(exports(name), consumer) == []
    assert warnings(exports(name), "vllm") == []
    assert any("was never tried there" in f.expected for f in warnings(exports(name), "trtllm"))


def set_to(suffix: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], object]:
    name = f"{LAYER}.{suffix}"
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


DAMAGE: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "no scale": ("INT8", lambda tensors: tensors.pop(f"{LAYER}.weight_scale"), "weight_scale"),
    "no input scale": ("INT8", lambda tensors: tensors.pop(f"{LAYER}.input_scale"), "input_scale"),
    "no codes": ("W4A16", lambda tensors: tensors.pop(f"{LAYER}.weight_packed"), "weight_packed"),
    "other shape": ("W4A16", set_to("weight_shape", lambda shape: shape * 2), "weight_shape"),
    "fewer words": ("W4A16", set_to("weight_packed", lambda words: words[:, :-1]), "weight_packed"),
    "fewer groups": ("W4A16", set_to("weight_scale", lambda scale: scale[:, :-1]), "weight_scale"),
    "nan": ("FP8 channel", set_to("weight_scale", lambda scale: scale / 0), "weight_scale"),
    "NaN codes": (
        "FP8 channel",
        set_to("weight", lambda codes: torch.full_like(codes.view(torch.uint8), 0x7F).view(codes.dtype)),
        "weight",
    ),
    "extra": ("FP8", lambda tensors: tensors.update({f"{LAYER}.g_idx": torch.ones(4)}), "g_idx"),
    "another dtype": ("INT8", set_to("weight", lambda codes: codes.view(torch.uint8)), "weight"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(exports: Callable[[str], Path], tmp_path: Path, damage: str) -> None:
    name, change, suffix = DAMAGE[damage]

    found = errors(damaged(exports(name), tmp_path / "copy", change))
    assert places(found) == {f"{LAYER}.{suffix}"}


def test_unequal_scales_of_joined_layers(exports: Callable[[str], Path], tmp_path: Path) -> None:
    folder = damaged(exports("FP8"), tmp_path / "copy", set_to("weight_scale", lambda scale: scale * 1.3))

    (found,) = warnings(folder)
    assert found.place == "model.layers.1.self_attn.qkv_proj.weight_scale"
    assert "requantizes" in found.expected
    assert warnings(folder, "transformers") == []  # it joins no layers


def in_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    with_json(folder / "config.json", lambda data: change(data["quantization_config"]))
    return folder


CONFIG_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "status": (lambda c: c.update(quantization_status="frozen"), "quantization_config.quantization_status"),
    "sparsity": (
        lambda c: c.update(sparsity_config={"targets": ["Linear"]}),
        "quantization_config.sparsity_config",
    ),
    "key": (
        lambda c: c["config_groups"]["group_0"]["weights"].update(bits=8),
        "quantization_config.config_groups.group_0.weights",
    ),
    "format": (
        lambda c: c["config_groups"]["group_0"].update(format="marlin-24"),
        "quantization_config.config_groups.group_0.format",
    ),
    "other format": (
        lambda c: c["config_groups"]["group_0"].update(format="float-quantized"),
        "quantization_config.config_groups.group_0.format",
    ),
}


@pytest.mark.parametrize("field", CONFIG_DAMAGE)
def test_metadata_that_readers_refuse(exports: Callable[[str], Path], tmp_path: Path, field: str) -> None:
    change, place = CONFIG_DAMAGE[field]

    (found,) = errors(in_config(copied(exports("INT8"), tmp_path / "copy"), change))
    assert found.place == f"config.json: {place}"


def test_the_ignore_list(exports: Callable[[str], Path], tmp_path: Path) -> None:
    missing = in_config(
        copied(exports("INT8"), tmp_path / "missing"), lambda c: c["ignore"].remove("lm_head")
    )
    assert [(f.place, f.advice) for f in errors(missing)] == [
        ("lm_head.weight", "Add it to the ignore list.")
    ]
    half = in_config(
        copied(exports("INT8"), tmp_path / "half"), lambda c: c["ignore"].append(f"re:.*{LAYER[-6:]}")
    )
    assert {place for place in places(errors(half)) if place.endswith("qkv_proj")} == {
        f"model.layers.{i}.self_attn.qkv_proj" for i in (0, 1)
    }
    assert f"{LAYER}.weight" in places(errors(half, "transformers"))


def test_a_group_by_name(exports: Callable[[str], Path], tmp_path: Path) -> None:
    def by_name(config: dict[str, Any]) -> None:
        config["config_groups"]["group_0"]["targets"] = ["re:model.layers.*(attn|mlp).*proj"]
        config["ignore"] = []

    assert errors(in_config(copied(exports("W4A16"), tmp_path / "copy"), by_name)) == []
    assert json_of(tmp_path / "copy" / "config.json")["quantization_config"]["ignore"] == []


def test_experts(tmp_path: Path) -> None:
    case = family_cases()["Qwen3-MoE"]
    model = octavo.quantize(case.model(), "INT8_WEIGHT_ONLY_CFG", [case.batch()], quiet=True)
    folder = export(model, tmp_path / "out", target="vllm")

    assert errors(folder) == []
    assert ["takes experts with scales per channel" in f.expected for f in warnings(folder)] == [True]
    name = "model.layers.0.mlp.experts.1.up_proj.weight_packed"
    lost = damaged(folder, tmp_path / "lost", lambda tensors: tensors.pop(name))
    assert places(errors(lost)) == {name}
