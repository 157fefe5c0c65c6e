"""`octavo quantize` and its options, by what the checkpoint then holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.utils import logging

from helpers.cli_runner import DATA, MODEL, Run
from helpers.exporters_models import digests, json_of

FP8 = ("quantize", MODEL, "--preset", "FP8_DEFAULT_CFG")
INT8 = ("quantize", MODEL, "--preset", "INT8_WEIGHT_ONLY_CFG")
MLP = "model.layers.0.mlp.down_proj"


def quantization(directory: Path) -> dict[str, object]:
    return json_of(directory / "hf_quant_config.json")["quantization"]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_a_checkpoint_with_its_tokenizer_and_a_line_that_says_so(octavo_command: Run, tmp_path: Path) -> None:
    done = octavo_command(*FP8, *DATA, "--out", tmp_path / "out")

    assert done.code == 0
    assert done.out == f"{tmp_path / 'out'}: 117 tensors, 0.38 MB\n"
    assert quantization(tmp_path / "out")["quant_algo"] == "FP8"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Once").input_ids == [1, 403]


def test_quiet_prints_nothing(octavo_command: Run, tmp_path: Path) -> None:
    done = octavo_command(*INT8, "--out", tmp_path / "out", "--quiet")

    assert (done.code, done.out, done.err) == (0, "", "")


def test_quiet_silences_the_loading_of_weights(octavo_command: Run, tmp_path: Path) -> None:
    logging.enable_progress_bar()  # as it is outside tests
    try:
        done = octavo_command(*INT8, "--out", tmp_path / "out", "--quiet")
    finally:
        logging.disable_progress_bar()

    assert done.err == ""


def test_a_cache(octavo_command: Run, tmp_path: Path) -> None:
    octavo_command(*FP8, "--kv", "FP8_KV_CFG", *DATA, "--out", tmp_path / "out")

    assert quantization(tmp_path / "out")["kv_cache_quant_algo"] == "FP8"
    assert sum(name.endswith(("k_scale", "v_scale")) for name in tensors(tmp_path / "out")) == 10


def test_block_size(octavo_command: Run, tmp_path: Path) -> None:
    preset = ("quantize", MODEL, "--preset", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG")
    refused = octavo_command(*preset, "--out", tmp_path / "whole")
    octavo_command(*preset, "--block-size", 32, "--out", tmp_path / "out")

    assert refused.code == 3
    assert "last dim 64 is not divisible by the block of 128 of int4 block{-1:128}" in refused.err
    assert quantization(tmp_path / "out")["group_size"] == 32
    assert tensors(tmp_path / "out")[f"{MLP}.weight_scale"].shape == (64, 6)


def test_a_recipe_instead_of_a_preset(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "include: [INT8_WEIGHT_ONLY_CFG]\nquant_cfg:\n  - {quantizer_name: '*self_attn*', enable: false}\n"
    )
    command = ("quantize", MODEL, "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "out")

    assert octavo_command(*command).code == 0
    assert quantization(tmp_path / "out")["quant_algo"] == "W8A16"
    assert sum(name.endswith("weight_scale") for name in tensors(tmp_path / "out")) == 3 * 5


def test_a_recipe_with_a_cache(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("include: [FP8_DEFAULT_CFG]\n")
    command = ("quantize", MODEL, "--recipe", tmp_path / "recipe.yaml", "--kv", "FP8_KV_CFG")

    assert octavo_command(*command, *DATA, "--out", tmp_path / "out").code == 0
    assert quantization(tmp_path / "out")["kv_cache_quant_algo"] == "FP8"


@pytest.mark.parametrize(("option", "expected"), [((), "float32"), (("--dtype", "bfloat16"), "bfloat16")])
def test_dtype(octavo_command: Run, tmp_path: Path, option: tuple[str, ...], expected: str) -> None:
    octavo_command(*INT8, *option, "--out", tmp_path / "out")

    assert json_of(tmp_path / "out" / "config.json")["dtype"] == expected
    assert tensors(tmp_path / "out")["model.norm.weight"].dtype == getattr(torch, expected)


def test_overwrite(octavo_command: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    octavo_command(*INT8, "--out", out)
    before = digests(out)
    refused = octavo_command(*FP8, *DATA, "--out", out)

    assert refused.code == 5
    assert (
        f"octavo: error: {out} is not empty; give another folder, or overwrite=True (--overwrite)\n"
        in refused.err
    )
    assert digests(out) == before
    assert octavo_command(*FP8, *DATA, "--out", out, "--overwrite").code == 0
    assert quantization(out)["quant_algo"] == "FP8"


def test_a_folder_that_is_not_empty_is_refused_before_any_work(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    refused = octavo_command(*FP8, *DATA, "--out", tmp_path)

    assert refused.code in (3, 5)
    assert "weights quantized" not in refused.err
