"""The command line takes every preset; what the bundled model is too small for is said by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import octavo
from helpers.adapters_models import tiny_model
from helpers.cli_runner import DATA, MODEL, Run
from helpers.exporters_models import json_of
from octavo.core.config.presets import kv_preset_names

CACHES = kv_preset_names()
# Its rows have 64 channels, or 192, and its heads 8.
BLOCKS_OF_32 = (
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "INT4_AWQ_CFG",
    "W4A8_AWQ_BETA_CFG",
    "OCTAVO_INT4_CFG",
    "OCTAVO_INT3_CFG",
)
OF_EXPERTS = "NVFP4_EXPERTS_ONLY_CFG"
NVFP4_CACHES = ("NVFP4_KV_CFG", "NVFP4_AFFINE_KV_CFG", "NVFP4_KV_ROTATE_CFG")
_MORE = {
    # Learned rounding needs many batches, and only one of the exporters has a place for three bits.
    "OCTAVO_INT3_CFG": ("--calib-size", 16, "--batch-size", 1, "--target", "transformers"),
}
REFUSED = {
    OF_EXPERTS: "matches no quantizer of this model",
    **dict.fromkeys(
        NVFP4_CACHES,
        "k_bmm_quantizer: last dim 8 is not divisible by the block of 16",
    ),
}


def options(name: str) -> tuple[object, ...]:
    if name in CACHES:
        return ("--preset", "FP8_DEFAULT_CFG", "--kv", name)
    return ("--preset", name, *(("--block-size", 32) if name in BLOCKS_OF_32 else ()))


@pytest.mark.parametrize("name", octavo.preset_names())
def test_plan(octavo_command: Run, name: str) -> None:
    done = octavo_command("plan", MODEL, *options(name))

    assert done.code == (3 if name in REFUSED else 0), done.out
    assert REFUSED.get(name, "weights quantized") in done.out


@pytest.mark.parametrize("name", octavo.preset_names())
def test_quantize(octavo_command: Run, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every one is quantized, written and read back, by a model that is large enough for it."""
    model, more = _model_for(name, request, tmp_path), _MORE.get(name, ())
    done = octavo_command("quantize", model, *options(name), *DATA, *more, "--out", tmp_path / "out")
    assert done.code == 0, done.err

    read = octavo_command("inspect", tmp_path / "out", "--verify", "--json")
    assert read.json["verified"]["quantized"] > 0


def _model_for(name: str, request: pytest.FixtureRequest, folder: Path) -> Path:
    if name in NVFP4_CACHES:
        shared: Path = request.getfixturevalue("shared")
        return shared / "data" / "babyllama105-hf"
    if name != OF_EXPERTS:
        return MODEL
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "vocab_size": 512}
    tiny_model("qwen3_moe", num_hidden_layers=1, **sizes).save_pretrained(folder / "moe")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder / "moe")
    return folder / "moe"


def test_a_format_without_a_place_is_refused_before_loading(octavo_command: Run, tmp_path: Path) -> None:
    done = octavo_command("quantize", MODEL, *options("OCTAVO_INT3_CFG"), *DATA, "--out", tmp_path / "out")

    assert done.code == 3
    assert "unified_hf checkpoints have no place for these formats: weights int3 block{-1:32}" in done.err
    assert "Exporters that have: compressed_tensors" in done.err
    assert "Calibrating" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "quant_algo", "cache"),
    [
        ("INT8_SMOOTHQUANT_CFG", "W8A8_SQ_PER_CHANNEL", None),
        ("W4A8_AWQ_BETA_CFG", "W4A8_AWQ", None),
        ("NVFP4_FOUR_OVER_SIX_CFG", "NVFP4", None),
        ("MXFP8_DEFAULT_CFG", "MXFP8", None),
        ("FP8_AFFINE_KV_CFG", "FP8", "FP8"),
    ],
)
def test_the_formats_are_named(
    octavo_command: Run, name: str, quant_algo: str, cache: str | None, tmp_path: Path
) -> None:
    done = octavo_command("quantize", MODEL, *options(name), *DATA, "--out", tmp_path / "out")

    assert done.code == 0, done.err
    quantization = json_of(tmp_path / "out" / "hf_quant_config.json")["quantization"]
    assert (quantization["quant_algo"], quantization["kv_cache_quant_algo"]) == (quant_algo, cache)
