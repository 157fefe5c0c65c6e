"""What the plan says of an engine that will serve the checkpoint."""

from __future__ import annotations

import re

import pytest
import torch

import octavo
from helpers.exporters_models import ALGORITHMS, plain_model
from octavo.core.errors import ConfigError, PlanError

PRESET_OF = {name: preset for preset, name in ALGORITHMS.items()}


@pytest.mark.parametrize(
    ("quant_algo", "engine", "status"),
    [
        ("FP8", "vllm", "loads"),
        ("NVFP4", "trtllm", "loads"),
        ("FP8_PER_CHANNEL_PER_TOKEN", "sglang", "loads"),  # as compressed-tensors
        ("W4A8_NVFP4_FP8", "sglang", "refused"),
        ("W8A8_SQ_PER_CHANNEL", "vllm", "loads"),  # as compressed-tensors
        ("MXFP6", "vllm", "refused"),
        ("W4A16_NVFP4", "trtllm", "unknown"),
        ("NVFP4", "transformers", "loads"),  # as compressed-tensors
        ("MXINT8", "transformers", "refused"),
    ],
)
def test_the_plan_says_so(quant_algo: str, engine: str, status: str) -> None:
    with torch.device("meta"):
        plan = octavo.plan(plain_model(), PRESET_OF[quant_algo], target=engine)
    said = {"refused": plan.errors, "unknown": plan.warnings, "loads": ()}[status]

    assert any(
        re.match(rf"{engine} and weights .*: {status} \(.+\); layers model\.layers\.", text) for text in said
    ) is (status != "loads")
    assert bool(plan.errors) is (status == "refused")
    if status == "refused":
        with pytest.raises(PlanError, match=f"{engine} and weights"):
            plan.check()


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"unknown target 'vlm'; known: vllm, .*Did you mean 'vllm'"),
    ):
        octavo.plan(plain_model(), "FP8_DEFAULT_CFG", target="vlm")


def test_sglang_refuses_mixed_precision_without_nvfp4() -> None:
    rules = [
        {"quantizer_name": "*mlp*weight_quantizer", "cfg": {"num_bits": (4, 3)}},
        {"quantizer_name": "*mlp*input_quantizer", "cfg": {"num_bits": (4, 3)}},
        *(
            {
                "quantizer_name": f"*self_attn*_proj.{kind}_quantizer",
                "cfg": {"num_bits": (4, 3), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
            }
            for kind in ("weight", "input")
        ),
    ]
    with torch.device("meta"):
        plan = octavo.plan(plain_model(), {"quant_cfg": rules}, target="sglang")

    assert any("MIXED_PRECISION" in error for error in plan.errors)
