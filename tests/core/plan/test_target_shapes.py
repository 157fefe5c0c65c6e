"""Shapes and groups that an engine refuses: ../shared/specs/unified-hf.md, sections 2 to 4."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from helpers.exporters_models import plain_model, tokens
from helpers.plan_models import new_model, planned, shared_model
from octavo.core.errors import ExportError, PlanError
from octavo.core.model.serving import model_serving

SQUARE = "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"
WITHOUT_V = octavo.merge_configs(
    "FP8_DEFAULT_CFG", {"quant_cfg": [{"quantizer_name": "*v_proj*", "enable": False}]}
)


def of_target(texts: tuple[str, ...], target: str) -> list[str]:
    return [text for text in texts if text.startswith(target)]


def test_square_blocks_that_a_joined_layer_would_cut() -> None:
    model = new_model(device="meta", num_attention_heads=8, num_key_value_heads=4, head_dim=32)
    (error,) = of_target(planned(SQUARE, shared_model(), target="vllm").errors, "vllm")

    assert error == (
        "vllm and weights e4m3 block{-1:128,-2:128} of shape [64, 128] on one rank, part of a joined layer: "
        "refused (source: ValueError: out_features 64 is no multiple of 128); layers model.layers.0.self_attn.k_proj, "
        "model.layers.0.self_attn.v_proj, model.layers.1.self_attn.k_proj and 1 more (4 in all)"
    )
    assert planned(SQUARE, model, target="vllm").errors == ()
    cut = of_target(planned(SQUARE, model, target="vllm", tp=2).errors, "vllm")
    assert any("of shape [64, 128] on one rank, part of a joined" in text for text in cut)


def test_square_blocks_that_a_fused_layer_would_cut() -> None:
    """Phi-3's qkv_proj has 256 rows, two blocks of 128, and vLLM loads its q, k and v each for itself."""
    (error,) = of_target(planned(SQUARE, new_model("phi3", "meta"), target="vllm").errors, "vllm")

    assert "of shape [64, 128] on one rank" in error
    assert error.endswith("layers model.layers.0.self_attn.qkv_proj, model.layers.1.self_attn.qkv_proj")


def test_a_model_that_is_quantized_already_is_held_to_the_same_shapes() -> None:
    model = new_model("phi3")
    octavo.quantize(model, SQUARE, quiet=True)

    with pytest.raises(
        ExportError, match=r"of shape \[64, 128\] on one rank, part of a .* model\.layers\.1\.self_attn\.qkv"
    ):
        model_serving(model, "vllm")


def test_square_blocks_along_the_input_must_be_whole_for_vllm() -> None:
    model = new_model(device="meta", intermediate_size=320, num_key_value_heads=4)

    errors = of_target(planned(SQUARE, model, target="vllm").errors, "vllm")

    assert any("in_features 320 is no multiple of 128" in text and "down_proj" in text for text in errors)
    assert planned(SQUARE, model).errors == ()


def test_a_shape_that_was_never_tried_is_a_warning() -> None:
    model = new_model(device="meta", intermediate_size=136)
    plan = planned("FP8_DEFAULT_CFG", model, target="sglang")

    assert plan.errors == ()
    assert any("unknown (source: its flashinfer path" in text and " 136 " in text for text in plan.warnings)
    assert planned("FP8_DEFAULT_CFG", model, target="vllm").warnings == ()


@pytest.mark.parametrize(
    ("target", "status"), [("vllm", "refused"), ("sglang", "refused"), ("trtllm", "unknown")]
)
def test_a_group_that_is_left_out_in_part(target: str, status: str) -> None:
    plan = planned(WITHOUT_V, target=target)
    said = {"refused": plan.errors, "unknown": plan.warnings}[status]

    first, second = of_target(said, target)
    assert first.startswith(
        f"{target} joins model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, "
        f"model.layers.0.self_attn.v_proj into one layer, which needs one format: {status} ("
    )
    assert first.endswith("left out: model.layers.0.self_attn.v_proj")
    assert "layers.1" in second


def test_a_group_of_two_formats() -> None:
    other: dict[str, Any] = {
        "quantizer_name": "*gate_proj.weight_quantizer",
        "cfg": {"num_bits": 8, "axis": 0},
    }
    config = octavo.merge_configs("FP8_DEFAULT_CFG", {"quant_cfg": [other]})

    errors = planned(config, target="vllm").errors

    assert any(
        "found weights int8 channel0, inputs e4m3 tensor: model.layers.0.mlp.gate_proj" in e for e in errors
    )


def test_quantize_refuses_before_any_work() -> None:
    model = plain_model()

    with pytest.raises(PlanError, match=r"vllm joins model\.layers\.0\.self_attn\.q_proj"):
        octavo.quantize(model, WITHOUT_V, [tokens()], quiet=True, target="vllm")
    with pytest.raises(PlanError, match="4 attention heads cannot be split over tp=8"):
        octavo.quantize(model, "FP8_DEFAULT_CFG", [tokens()], quiet=True, tp=8)

    assert not any(isinstance(module, octavo.QuantModule) for module in model.modules())


def test_the_exporter_that_writes_for_the_target() -> None:
    assert planned("FP8_DEFAULT_CFG", target="vllm").exporter == "unified_hf"
    assert planned("MXFP6_DEFAULT_CFG", target="vllm").exporter is None
    assert planned("FP8_DEFAULT_CFG").exporter is None
