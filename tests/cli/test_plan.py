"""`octavo plan`: every weight, its format or why it is left out, and what stands in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.cli_runner import DATA, MODEL, Run

FP8 = ("plan", MODEL, "--preset", "FP8_DEFAULT_CFG")


def test_a_line_for_each_weight_and_a_summary(octavo_command: Run) -> None:
    done = octavo_command(*FP8, "--target", "vllm", "--tp", 2)
    lines = [line.split() for line in done.out.splitlines()]

    assert (done.code, done.err) == (0, "")
    assert ["model.layers.4.mlp.down_proj.weight", "64x192", "e4m3", "tensor", "e4m3", "tensor"] in lines
    assert [
        "model.embed_tokens.weight",
        "512x64",
        "float32",
        "(turned",
        "off",
        "by",
        "'*'",
        "in",
        "nn.Embedding)",
        "-",
    ] in lines
    assert sum(line[:1] != [] and line[0].endswith(".weight") for line in lines) == 36
    assert "35 weights quantized, 88.0% of all parameters; 1.12 MB -> 0.38 MB" in done.out


def test_what_quantize_would_refuse(octavo_command: Run) -> None:
    done = octavo_command("plan", MODEL, "--preset", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG")

    assert done.code == 3
    assert "error: model.layers.0.self_attn.q_proj.weight_quantizer: last dim 64 is not divisible" in done.out
    assert done.out.count("is not divisible by the block of 128") == 35, "every layer is named"


def test_tensor_parallel_sizes_that_do_not_fit(octavo_command: Run) -> None:
    done = octavo_command(*FP8, "--tp", 3)

    assert done.code == 3
    assert "error: 8 attention heads cannot be split over tp=3" in done.out


def test_what_an_engine_refuses(octavo_command: Run) -> None:
    done = octavo_command("plan", MODEL, "--preset", "W4A8_NVFP4_FP8_CFG", "--target", "vllm")

    assert done.code == 3
    assert "inputs e4m3 tensor: refused (tried: not among" in done.out


def test_recipes_caches_and_blocks(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("include: [INT4_BLOCKWISE_WEIGHT_ONLY_CFG]\nalgorithm: max\n")
    command = ("plan", MODEL, "--recipe", tmp_path / "recipe.yaml", "--block-size", 16, "--kv", "FP8_KV_CFG")
    done = octavo_command(*command, "--json")

    assert done.code == 0
    assert {str(t["weight"][0]["granularity"]) for t in done.json["tensors"] if t["weight"]} == {
        "{'kind': 'block', 'sizes': {'-1': 16}}"
    }


def test_no_weights_are_needed(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((MODEL / "config.json").read_bytes())

    assert octavo_command("plan", tmp_path, "--preset", "FP8_DEFAULT_CFG").code == 0


def test_the_plan_is_of_the_dtype_that_quantize_loads(octavo_command: Run, tmp_path: Path) -> None:
    planned = octavo_command(*FP8, "--json").json
    done = octavo_command("quantize", MODEL, *FP8[2:], *DATA, "--out", tmp_path / "out")

    assert {tensor["dtype"] for tensor in planned["tensors"]} == {"float32"}
    assert f"-> {planned['bytes_after'] / 1e6:.2f} MB" in done.err


def test_globs_with_brackets_are_shown(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "include: [FP8_DEFAULT_CFG]\nquant_cfg:\n  - {quantizer_name: '*[qkv]_proj*', enable: false}\n"
    )
    done = octavo_command("plan", MODEL, "--recipe", tmp_path / "recipe.yaml")
    (row,) = (line for line in done.out.splitlines() if "model.layers.0.self_attn.q_proj.weight" in line[:45])

    assert "(turned off by '*[qkv]_proj*')" in row


@pytest.mark.parametrize("tp", [0, -2])
def test_a_tensor_parallel_size_below_one(octavo_command: Run, tp: int) -> None:
    done = octavo_command(*FP8, "--tp", tp)

    assert done.code in (2, 3)
    assert str(tp) in done.err
