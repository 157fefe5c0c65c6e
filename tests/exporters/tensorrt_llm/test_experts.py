"""Mixtures of experts: stacked matrices, one scale of each, one of their input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import octavo
from helpers.tensorrt_llm_models import DECODER, exported, tiny
from helpers.tiny import token_batches
from oracles.tensorrt_llm import dequantize, read_file

LAYER = "transformer.layers.0.mlp"


def mixtral(config: str | None) -> nn.Module:
    model = tiny("mixtral", torch.float32, **DECODER, num_local_experts=4, num_experts_per_tok=2)
    return model if config is None else octavo.quantize(model, config, token_batches(1), quiet=True)


def test_plain_experts(tmp_path: Path) -> None:
    model = mixtral(None)

    tensors, config = exported(model, tmp_path / "out", dtype=torch.bfloat16)

    experts = model.get_submodule("model.layers.0.mlp.experts")
    gate, up = experts.gate_up_proj.detach().chunk(2, 1)
    assert torch.equal(tensors[f"{LAYER}.fc.weight"], torch.cat([up, gate], 1).bfloat16())
    assert torch.equal(tensors[f"{LAYER}.proj.weight"], experts.down_proj.detach().bfloat16())
    router = model.get_submodule("model.layers.0.mlp.gate").weight.detach()
    assert torch.equal(tensors[f"{LAYER}.router.weight"], router), "in fp32"
    assert config["moe"] == {"num_experts": 4, "top_k": 2, "normalization_mode": 1}
    assert config["hidden_act"] == "swiglu"
    assert config["mapping"] == {
        "world_size": 1,
        "tp_size": 1,
        "pp_size": 1,
        "moe_tp_size": 1,
        "moe_ep_size": 1,
    }
    assert (config["intermediate_size"], config["quantization"]["quant_algo"]) == (256, None)


def test_fp8_experts(tmp_path: Path) -> None:
    model = mixtral("FP8_DEFAULT_CFG")

    exported(model, tmp_path / "out")

    tensors = read_file(tmp_path / "out" / "rank0.safetensors")
    with octavo.finalized(model, "tensorrt_llm"):
        experts = model.get_submodule("model.layers.0.mlp.experts")
        gate, up = experts.gate_up_proj_weight_quantizer(experts.gate_up_proj.detach()).chunk(2, 1)
        expected = {
            "fc": torch.cat([up, gate], 1),
            "proj": experts.down_proj_weight_quantizer(experts.down_proj),
        }
        for name, values in expected.items():
            found = dequantize(tensors, f"{LAYER}.{name}", "FP8")
            np.testing.assert_allclose(found, values.detach().double().numpy(), rtol=2**-24, atol=0)
            assert tensors[f"{LAYER}.{name}.weights_scaling_factor"].shape == (4, 1)
            assert tensors[f"{LAYER}.{name}.activation_scaling_factor"].shape == (1,)


@pytest.mark.parametrize("ep", [1, 2])
def test_experts_on_two_ranks_are_the_whole_in_parts(tmp_path: Path, ep: int) -> None:
    model = mixtral("FP8_DEFAULT_CFG")
    whole, _ = exported(model, tmp_path / "one")

    part, config = exported(
        model, tmp_path / "two", inference_tensor_parallel=2, inference_expert_parallel=ep
    )

    weight = whole[f"{LAYER}.fc.weight"].view(torch.uint8)
    up, gate = weight.chunk(2, 1)
    expected = weight[:2] if ep == 2 else torch.cat([up[:, :128], gate[:, :128]], 1)
    assert torch.equal(part[f"{LAYER}.fc.weight"].view(torch.uint8), expected)
    assert config["mapping"]["moe_ep_size"] == ep


@pytest.mark.parametrize("preset", ["NVFP4_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG"])
def test_other_formats_of_experts_are_refused(tmp_path: Path, preset: str) -> None:
    with pytest.raises(octavo.ExportError, match=r"layers\.0\.mlp\.experts .*of experts, readers take FP8"):
        exported(mixtral(preset), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_int8_experts_for_the_reader_are_plain(tmp_path: Path) -> None:
    tensors, config = exported(mixtral("INT8_WEIGHT_ONLY_CFG"), tmp_path / "out", target="trtllm")

    assert tensors[f"{LAYER}.fc.weight"].dtype == torch.float16
    assert config["quantization"]["quant_algo"] == "W8A16"
    assert f"{LAYER}.router" in config["quantization"]["exclude_modules"]
