"""The bytes that a plan promises are those that an export writes, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import octavo
from helpers.plan_models import new_model, planned, tokens
from octavo.core.config import with_block_size

# What a checkpoint holds beside weights and their scales, for which a plan has no parameter.
ACTIVATION_SCALES = (".input_scale", ".k_scale", ".v_scale")
CONFIGS: dict[str, Any] = {
    **{name: name for name in (
        "INT8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "FP8_DEFAULT_CFG",
        "FP8_PER_CHANNEL_PER_TOKEN_CFG", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "NVFP4_DEFAULT_CFG", "W4A16_NVFP4_CFG",
        "NVFP4_MLP_ONLY_CFG", "W4A8_NVFP4_FP8_CFG", "MXFP8_DEFAULT_CFG", "MXFP6_DEFAULT_CFG", "MXFP4_DEFAULT_CFG",
        "MXINT8_DEFAULT_CFG", "W4A8_MXFP4_FP8_CFG",
    )},
    "INT4 with blocks of 32": with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32),
    "NVFP4 with a cache in FP8": octavo.merge_configs("NVFP4_DEFAULT_CFG", "FP8_KV_CFG"),
}  # fmt: skip


def written_bytes(model: nn.Module, config: Any, folder: Path) -> dict[str, int]:
    """Quantize, export, and return {parameter: bytes of its codes and scales, or of itself}."""
    octavo.quantize(model, config, [tokens()], quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=folder, quiet=True)
    sizes: dict[str, int] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(ACTIVATION_SCALES):
            parameter = name.removesuffix("_2").removesuffix("_scale")
            sizes[parameter] = sizes.get(parameter, 0) + tensor.nbytes
    return sizes


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bytes_are_those_of_the_files(config: Any, tmp_path: Path) -> None:
    model = new_model(num_hidden_layers=1)
    plan = planned(config, model)
    written = written_bytes(model, config, tmp_path / "out")

    assert plan.coverage > 0.5
    assert {t.name: t.bytes_after for t in plan.tensors} == written
    assert plan.bytes_after == sum(written.values())


def test_square_blocks_that_do_not_divide_the_weight(tmp_path: Path) -> None:
    model = new_model(num_hidden_layers=1, hidden_size=96, intermediate_size=160)
    config = "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"
    plan = planned(config, model)

    assert plan.errors == (), "square blocks are padded"
    assert {t.name: t.bytes_after for t in plan.tensors} == written_bytes(model, config, tmp_path / "out")


def test_bfloat16(tmp_path: Path) -> None:
    model = new_model(num_hidden_layers=1, dtype=torch.bfloat16)
    plan = planned("FP8_DEFAULT_CFG", model)

    assert {t.dtype for t in plan.tensors} == {"bfloat16"}
    assert plan.bytes_before == 2 * sum(t.num_values for t in plan.tensors)
    assert {t.name: t.bytes_after for t in plan.tensors} == written_bytes(
        model, "FP8_DEFAULT_CFG", tmp_path / "out"
    )


def test_tied_weights_count_once(tmp_path: Path) -> None:
    model = new_model("qwen3", num_hidden_layers=1, tie_word_embeddings=True)
    plan = planned("FP8_DEFAULT_CFG", model)

    assert {t.name: t.bytes_after for t in plan.tensors} == written_bytes(
        model, "FP8_DEFAULT_CFG", tmp_path / "out"
    )


def test_odd_widths_and_stages_in_turn() -> None:
    """Formats that no exporter writes yet, by hand: 3 bits of 10 values take 4 bytes."""
    model = nn.Sequential(nn.Linear(10, 6, bias=False))
    stages = [{"num_bits": 3, "block_sizes": {-1: 5}}, {"num_bits": (4, 3)}]
    config = {"quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": stages}]}

    assert planned(config, model).bytes_after == 6 * 4 + 6 * 2 * 4 + 4
