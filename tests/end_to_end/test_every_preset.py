"""Every preset of ModelOpt on a trained model: quantized, exported, read back with the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import octavo
from helpers.adapters_models import tiny_model
from octavo.core.errors import PlanError

# All names of ../shared/specs/modelopt.md, 1.1.
_NAMES = """
    INT8_DEFAULT_CFG INT8_SMOOTHQUANT_CFG INT8_WEIGHT_ONLY_CFG INT4_BLOCKWISE_WEIGHT_ONLY_CFG INT4_AWQ_CFG
    W4A8_AWQ_BETA_CFG FP8_DEFAULT_CFG FP8_PER_CHANNEL_PER_TOKEN_CFG FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG
    NVFP4_DEFAULT_CFG W4A16_NVFP4_CFG NVFP4_AWQ_LITE_CFG NVFP4_AWQ_CLIP_CFG NVFP4_AWQ_FULL_CFG
    NVFP4_SVDQUANT_DEFAULT_CFG NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG
    NVFP4_FOUR_OVER_SIX_CFG NVFP4_MLP_ONLY_CFG NVFP4_EXPERTS_ONLY_CFG NVFP4_OMLP_ONLY_CFG
    NVFP4_MLP_WEIGHT_ONLY_CFG W4A8_NVFP4_FP8_CFG MXFP8_DEFAULT_CFG MXFP6_DEFAULT_CFG MXFP4_DEFAULT_CFG
    MXINT8_DEFAULT_CFG MXFP4_MLP_WEIGHT_ONLY_CFG W4A8_MXFP4_FP8_CFG MAMBA_MOE_FP8_AGGRESSIVE_CFG
    MAMBA_MOE_FP8_CONSERVATIVE_CFG MAMBA_MOE_NVFP4_AGGRESSIVE_CFG MAMBA_MOE_NVFP4_CONSERVATIVE_CFG
    NVFP4_FP8_MHA_CONFIG FP8_KV_CFG NVFP4_KV_CFG FP8_AFFINE_KV_CFG NVFP4_AFFINE_KV_CFG NVFP4_KV_ROTATE_CFG
"""
MODELOPT = _NAMES.split()
OF_EXPERTS = "NVFP4_EXPERTS_ONLY_CFG"  # the trained models have none
CACHES = octavo.core.config.presets.kv_preset_names()
MODELS = [name for name in MODELOPT if name not in (OF_EXPERTS, *CACHES)]
BLOCKS_OF_32 = ("INT4", "W4A8_AWQ")  # 128 does not divide these small models


def config_of(name: str) -> dict[str, Any]:
    """Return the preset, joined to one for weights where it is for the cache alone."""
    config = octavo.merge_configs("FP8_DEFAULT_CFG", name) if name in CACHES else octavo.preset(name)
    return octavo.with_block_size(config, 32) if name.startswith(BLOCKS_OF_32) else config


def batches(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 105, (2, 16), generator=generator) for _ in range(2)]


def trained(path: Path) -> nn.Module:
    """Return the first two of five trained blocks, which is enough and takes less time."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:2], 2
    return model


def check_reads_back(model: nn.Module, config: Any, directory: Path) -> tuple[str, ...]:
    """Quantize, export and read back; return the export's warnings."""
    ids = batches(1)[0]
    with torch.no_grad():
        plain = model(ids).logits
    octavo.quantize(model, config, batches(), quiet=True)
    report = octavo.export_hf_checkpoint(model, export_dir=directory, quiet=True)
    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        expected = model(ids).logits
    with torch.no_grad():
        found = octavo.load_quantized(directory)(ids).logits
    assert torch.equal(found, expected)
    assert found.isfinite().all()
    assert not torch.equal(found, plain), "something was quantized"
    return report.warnings


def test_no_preset_is_missing() -> None:
    own = [name for name in octavo.preset_names() if name.startswith("OCTAVO_")]

    assert sorted(octavo.preset_names()) == sorted([*MODELOPT, *own])
    assert len(MODELOPT) == 39


@pytest.mark.parametrize("name", MODELS)
def test_of_models(name: str, stories: Path, tmp_path: Path) -> None:
    check_reads_back(trained(stories), config_of(name), tmp_path / "out")


@pytest.mark.parametrize("name", CACHES)
def test_of_caches(name: str, shared: Path, tmp_path: Path) -> None:
    """On a model whose heads have 16 channels: blocks of 16 do not fit the bundled model's 8."""
    model = trained(shared / "data" / "babyllama105-hf")
    warnings = check_reads_back(model, config_of(name), tmp_path / "out")

    is_rotated = name == "NVFP4_KV_ROTATE_CFG"
    assert any("queries and keys are rotated" in warning for warning in warnings) == is_rotated


def test_of_experts(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no quantizer"):
        octavo.quantize(trained(stories), OF_EXPERTS, batches(), quiet=True)

    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hidden_layers": 1}
    check_reads_back(tiny_model("qwen3_moe", **sizes), OF_EXPERTS, tmp_path / "out")
