"""Whether an engine loads a plan's formats: ../shared/specs/unified-hf.md, section 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import octavo
from helpers.config_rules import FP8, entry, weights
from helpers.plan_models import SIZES, planned
from octavo.core.config import merge_configs, with_block_size
from octavo.core.errors import ConfigError

# preset: what vLLM, SGLang, TensorRT-LLM and transformers make of it, from the exporter that suits each best
# (l: loads, ?: not established, r: refused)
VERDICTS = {
    "FP8_DEFAULT_CFG": "llll",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": "ll?l",
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG": "r??l",  # keys have 64 rows here: test_target_shapes.py
    "NVFP4_DEFAULT_CFG": "llll",
    "NVFP4_MLP_ONLY_CFG": "llll",
    "W4A16_NVFP4_CFG": "ll?l",
    "MXFP8_DEFAULT_CFG": "ll?l",
    "INT8_DEFAULT_CFG": "ll?l",
    "INT8_WEIGHT_ONLY_CFG": "ll?l",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": "ll?l",
    "W4A8_NVFP4_FP8_CFG": "rr?r",
    "MXFP4_DEFAULT_CFG": "lr?l",
    "W4A8_MXFP4_FP8_CFG": "rr?r",
    "MXFP6_DEFAULT_CFG": "rrrr",
    "MXINT8_DEFAULT_CFG": "rrrr",
    "MXFP4_MLP_WEIGHT_ONLY_CFG": "l??l",
}
ENGINES = ("vllm", "sglang", "trtllm", "transformers")


def verdict(config: Any, target: str) -> str:
    """Return l, ? or r, as the plan's errors and warnings about the target say."""
    plan = planned(config, target=target)
    errors = [text for text in plan.errors if text.startswith(target)]
    warnings = [text for text in plan.warnings if text.startswith(target)]
    assert not (errors and warnings)
    assert all(": refused (" in text for text in errors)
    assert all(": unknown (" in text for text in warnings)
    return "r" if errors else "?" if warnings else "l"


@pytest.mark.parametrize("name", VERDICTS)
def test_presets(name: str) -> None:
    assert "".join(verdict(name, engine) for engine in ENGINES) == VERDICTS[name]
    assert planned(name, target=None).errors == ()


def test_a_refusal_names_format_evidence_and_layers() -> None:
    (error,) = planned("W4A8_NVFP4_FP8_CFG", target="vllm").errors

    assert error == (
        "vllm and weights e2m1 block{-1:32} e4m3·global dynamic, inputs e4m3 tensor: refused "
        "(tried: not among its quant_algo names); layers model.layers.0.self_attn.q_proj, "
        "model.layers.0.self_attn.k_proj, model.layers.0.self_attn.v_proj and 11 more (14 in all)"
    )


def test_formats_that_the_checkpoint_cannot_store() -> None:
    embedding, error = planned(weights({"num_bits": 5}), target="trtllm").errors

    assert embedding == (
        "trtllm and weights int5 tensor of other layers: refused (checkpoints store quantized linear layers "
        "only); layers model.embed_tokens"
    )
    assert (
        "trtllm and weights int5 tensor, inputs None: refused (the unified HF dialect cannot store this"
        in error
    )


MX = {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}


def test_each_format_of_a_mixed_config_has_its_verdict() -> None:
    int8 = entry("*mlp.down_proj.weight_quantizer", {"num_bits": 8, "axis": 0})
    config = merge_configs(
        "FP8_DEFAULT_CFG", {"quant_cfg": [int8, entry("*down_proj.input_quantizer", enable=False)]}
    )
    mixed = planned(config, target="sglang")
    mx = entry("*down_proj.weight_quantizer", {"num_bits": 8, "block_sizes": MX})
    (error,) = planned(merge_configs(config, {"quant_cfg": [mx]}), target="sglang").errors

    assert (mixed.errors, mixed.exporter) == ((), "compressed_tensors")
    assert "sglang and weights int8 block{-1:32} e8m0 dynamic, inputs None: refused" in error
    assert "layers model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj" in error
    assert planned(config, target="trtllm").errors == ()


def test_any_block_of_int4_is_the_same_format() -> None:
    assert verdict(with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32), "trtllm") == "?"


@pytest.mark.parametrize("name", ["vlm", "VLLM", "tensorrt"])
def test_unknown_targets(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"unknown target '{name}'; known: vllm, sglang, trtllm, transformers"
    ):
        planned("FP8_DEFAULT_CFG", target=name)


def test_the_nearest_target_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"unknown target 'vlm'.* Did you mean 'vllm'\?"):
        planned("FP8_DEFAULT_CFG", target="vlm")


def test_stages_in_turn() -> None:
    stages = [{"num_bits": 4, "block_sizes": {-1: 128}}, FP8]

    assert verdict(weights(stages), "vllm") == "r"


def test_a_cache_in_nvfp4_is_not_established_in_vllm() -> None:
    assert verdict(octavo.merge_configs("NVFP4_DEFAULT_CFG", "NVFP4_KV_CFG"), "vllm") == "?"


def llava(config: Mapping[str, Any], target: str) -> octavo.Plan:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(
                "llava",
                vision_config={
                    "model_type": "clip_vision_model",
                    "image_size": 16,
                    "patch_size": 8,
                    **vision,
                },
                text_config={"model_type": "llama", **SIZES},
            )
        )
    return planned(config, model, target=target)


def test_a_vision_tower_that_a_users_own_pattern_turns_on() -> None:
    preset = octavo.NVFP4_DEFAULT_CFG
    (weight,) = (e for e in preset["quant_cfg"] if e["quantizer_name"] == "*weight_quantizer")
    config = merge_configs(preset, {"quant_cfg": [weight | {"quantizer_name": "*.fc1.weight_quantizer"}]})
    layer = "model.vision_tower.encoder.layers.0.mlp.fc1"

    assert llava(preset, "vllm").errors == ()
    assert llava(config, "vllm").exporter == "compressed_tensors"  # from ModelOpt's dialect, vLLM refuses it
    assert (
        "vllm and quantized weights in a vision tower: unknown (a quantized vision tower was never tried there); "
        f"layers {layer}"
    ) in llava(config, "vllm").warnings
    assert (
        "sglang and quantized weights in a vision tower: unknown (a quantized vision tower was never tried there); "
        f"layers {layer}"
    ) in llava(config, "sglang").warnings
