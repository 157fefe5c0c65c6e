"""What each preset says of layers in an MLP, in attention and of experts: ../shared/specs/modelopt.md, 1.1."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.config_presets import (
    AWQ,
    AWQ_FULL,
    FOUR_OVER_SIX,
    FP8,
    FP8_CHANNEL,
    FP8_SQUARE,
    FP8_TOKEN,
    INT4,
    INT8,
    INT8_CHANNEL,
    MSE,
    MXFP4,
    MXFP6,
    MXFP8,
    MXINT8,
    NVFP4,
    NVFP4_32,
    STATIC,
    SWEEP,
    layer,
)
from helpers.config_rules import decided, is_on
from octavo.core.config import preset

# name: (stages of an MLP weight, attributes of its input or None for off, algorithm, attention's q_proj on as well)
SETTINGS: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None, Any, bool]] = {
    "INT8_DEFAULT_CFG": ([INT8_CHANNEL], INT8, "max", True),
    "INT8_SMOOTHQUANT_CFG": ([INT8_CHANNEL], INT8, "smoothquant", True),
    "INT8_WEIGHT_ONLY_CFG": ([INT8_CHANNEL], None, "max", True),
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": ([INT4], None, "max", True),
    "INT4_AWQ_CFG": ([INT4], None, AWQ, True),
    "W4A8_AWQ_BETA_CFG": ([INT4, FP8], FP8, "awq_lite", True),
    "FP8_DEFAULT_CFG": ([FP8], FP8, "max", True),
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": ([FP8_CHANNEL], FP8_TOKEN, "max", True),
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG": ([FP8_SQUARE], None, "max", True),
    "NVFP4_DEFAULT_CFG": ([NVFP4], NVFP4, "max", True),
    "W4A16_NVFP4_CFG": ([NVFP4], None, "max", True),
    "NVFP4_AWQ_LITE_CFG": ([NVFP4], NVFP4, "awq_lite", True),
    "NVFP4_AWQ_CLIP_CFG": ([NVFP4], NVFP4, "awq_clip", True),
    "NVFP4_AWQ_FULL_CFG": ([NVFP4], NVFP4, AWQ_FULL, True),
    "NVFP4_SVDQUANT_DEFAULT_CFG": ([NVFP4], NVFP4, {"method": "svdquant", "lowrank": 32}, True),
    "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG": ([STATIC], NVFP4, {"method": "mse", **SWEEP}, True),
    "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG": ([STATIC], NVFP4, {"method": "local_hessian", **SWEEP}, True),
    "NVFP4_FOUR_OVER_SIX_CFG": ([FOUR_OVER_SIX], NVFP4, MSE, True),
    "NVFP4_MLP_ONLY_CFG": ([NVFP4], NVFP4, "max", False),
    "NVFP4_OMLP_ONLY_CFG": ([NVFP4], NVFP4, "max", False),
    "NVFP4_MLP_WEIGHT_ONLY_CFG": ([NVFP4_32], None, "max", False),
    "W4A8_NVFP4_FP8_CFG": ([NVFP4_32], FP8, "max", True),
    "MXFP8_DEFAULT_CFG": ([MXFP8], MXFP8, None, True),
    "MXFP6_DEFAULT_CFG": ([MXFP6], MXFP6, None, True),
    "MXFP4_DEFAULT_CFG": ([MXFP4], MXFP4, None, True),
    "MXINT8_DEFAULT_CFG": ([MXINT8], MXINT8, None, True),
    "MXFP4_MLP_WEIGHT_ONLY_CFG": ([MXFP4], None, None, False),
    "W4A8_MXFP4_FP8_CFG": ([MXFP4], FP8, None, True),
    "MAMBA_MOE_FP8_AGGRESSIVE_CFG": ([FP8], FP8, "max", False),
    "MAMBA_MOE_FP8_CONSERVATIVE_CFG": ([FP8], FP8, "max", False),
    "MAMBA_MOE_NVFP4_AGGRESSIVE_CFG": ([NVFP4], NVFP4, "max", False),
    "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG": ([NVFP4], NVFP4, "max", False),
    "NVFP4_FP8_MHA_CONFIG": ([NVFP4], NVFP4, "max", True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_layers(name: str) -> None:
    weight, inputs, algorithm, attention = SETTINGS[name]
    rules = preset(name)["quant_cfg"]

    assert preset(name)["algorithm"] == algorithm
    assert decided(rules, layer("mlp.up_proj.weight_quantizer")) == weight
    assert is_on(rules, layer("mlp.up_proj.input_quantizer")) == (inputs is not None)
    if inputs is not None:
        assert decided(rules, layer("mlp.up_proj.input_quantizer")) == [inputs]
    assert is_on(rules, layer("self_attn.q_proj.weight_quantizer")) == attention
    assert not is_on(rules, layer("mlp.up_proj.output_quantizer"))
    assert not is_on(rules, "lm_head.weight_quantizer")
    assert not is_on(rules, layer("mlp.gate.weight_quantizer"))
    assert not is_on(rules, "model.embed_tokens.weight_quantizer", ["nn.Embedding"])


EXPERT = layer("mlp.experts.3.up_proj.weight_quantizer")
O_PROJ = layer("self_attn.o_proj.weight_quantizer")
PARTS = ["NVFP4_MLP_ONLY_CFG", "NVFP4_OMLP_ONLY_CFG", "NVFP4_EXPERTS_ONLY_CFG"]


def test_presets_for_parts_of_a_model() -> None:
    rules = {name: preset(name)["quant_cfg"] for name in PARTS}

    assert decided(rules["NVFP4_EXPERTS_ONLY_CFG"], EXPERT) == [NVFP4]
    assert not is_on(rules["NVFP4_EXPERTS_ONLY_CFG"], layer("mlp.up_proj.weight_quantizer"))
    assert [is_on(rules[name], O_PROJ) for name in PARTS] == [False, True, False]
    assert [is_on(rules[name], layer("mixer.up_proj.input_quantizer")) for name in PARTS] == [
        True,
        True,
        False,
    ]
    assert [is_on(rules[name], layer("block_sparse_moe.experts.0.w1.input_quantizer")) for name in PARTS] == [
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("kind", ["FP8", "NVFP4"])
def test_mamba_presets_leave_attention_and_latent_projections_alone(kind: str) -> None:
    both = [preset(f"MAMBA_MOE_{kind}_{how}_CFG")["quant_cfg"] for how in ("AGGRESSIVE", "CONSERVATIVE")]

    assert [is_on(rules, layer("mixer.up_proj.weight_quantizer")) for rules in both] == [True, True]
    assert [is_on(rules, layer("mixer.fc1_latent_proj.weight_quantizer")) for rules in both] == [False, False]
    assert [is_on(rules, O_PROJ) for rules in both] == [False, False]
    assert [is_on(rules, layer("mixer.in_proj.weight_quantizer")) for rules in both] == [True, False]
