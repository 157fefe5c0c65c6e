"""The command line takes every preset; what the bundled model is too small for is said by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
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
REFUSED = {
    "NVFP4_EXPERTS_ONLY_CFG": "matches no quantizer of this model",
    **dict.fromkeys(
        ("NVFP4_KV_CFG", "NVFP4_AFFINE_KV_CFG", "NVFP4_KV_ROTATE_CFG"),
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
def test_quantize(octavo_command: Run, name: str, quant_algo: str, cache: str | None, tmp_path: Path) -> None:
    done = octavo_command("quantize", MODEL, *options(name), *DATA, "--out", tmp_path / "out")

    assert done.code == 0, done.err
    quantization = json_of(tmp_path / "out" / "hf_quant_config.json")["quantization"]
    assert (quantization["quant_algo"], quantization["kv_cache_quant_algo"]) == (quant_algo, cache)
