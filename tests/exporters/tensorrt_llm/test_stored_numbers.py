"""What a checkpoint holds, dequantized by numpy alone, is what the model finalized for the dialect computes with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.tensorrt_llm_models import exported, quantized_llama
from oracles.tensorrt_llm import dequantize, read_file

PRESETS = {
    "FP8_DEFAULT_CFG": "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": "FP8_PER_CHANNEL_PER_TOKEN",
    "INT8_DEFAULT_CFG": "W8A8_SQ_PER_CHANNEL",
    "INT8_SMOOTHQUANT_CFG": "W8A8_SQ_PER_CHANNEL",
    "INT8_WEIGHT_ONLY_CFG": "W8A16",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": "W4A16_AWQ",
    "INT4_AWQ_CFG": "W4A16_AWQ",
    "W4A8_AWQ_BETA_CFG": "W4A8_AWQ",
    "NVFP4_DEFAULT_CFG": "NVFP4",
    "NVFP4_AWQ_LITE_CFG": "NVFP4_AWQ",
}
PARTS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_and_inputs_are_the_finalized_ones(tmp_path: Path, preset: str) -> None:
    model = quantized_llama(preset, torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    exported(model, tmp_path / "out")

    tensors = read_file(tmp_path / "out" / "rank0.safetensors")
    with octavo.finalized(model, "tensorrt_llm"):
        for block in range(2):
            for ours, theirs in PARTS.items():
                layer = f"transformer.layers.{block}.{ours}"
                layers = [model.get_submodule(f"model.layers.{block}.{name}") for name in theirs]
                found = dequantize(tensors, layer, PRESETS[preset])
                expected = torch.cat([_first_stage(each) for each in layers]).double().numpy()
                # FP4 multiplies three numbers: the oracle rounds once, the model twice.
                np.testing.assert_allclose(
                    found, expected, rtol=2**-22 if "NVFP4" in preset else 2**-24, atol=0
                )
                assert _inputs_of(tensors, layer) == _input_state(layers[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_joined_layers_share_and_what_not(tmp_path: Path) -> None:
    model = quantized_llama("W4A8_AWQ_BETA_CFG", torch.float32)
    tensors, _ = exported(model, tmp_path / "out")

    mlp = "transformer.layers.0.mlp"
    for suffix in ("prequant_scaling_factor", "weights_scaling_factor_2"):
        assert not torch.equal(tensors[f"{mlp}.fc.{suffix}"], tensors[f"{mlp}.gate.{suffix}"])
    with octavo.finalized(model, "unified_hf"):  # which does share them
        gate, up = (model.get_submodule(f"model.layers.0.mlp.{name}_proj") for name in ("gate", "up"))
        amaxes = [layer.weight_quantizer.stages()[1].amax for layer in (gate, up)]
        assert torch.equal(*amaxes)


@pytest.mark.parametrize(("kv", "divisor", "algo"), [("FP8", 448.0, "FP8"), ("INT8", 127.0, "INT8")])
def test_scales_of_keys_and_values(tmp_path: Path, kv: str, divisor: float, algo: str) -> None:
    config = octavo.merge_configs("INT8_WEIGHT_ONLY_CFG", "FP8_KV_CFG")
    if kv == "INT8":
        config["quant_cfg"].append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": 8}})
    model = quantized_llama(config, torch.float32)
    layer = model.get_submodule("model.layers.1.self_attn")
    for name, amax in (("k", 3.0), ("v", 900.0)):
        getattr(layer, f"{name}_bmm_quantizer").set_state(amax=torch.tensor(amax))

    tensors, written = exported(model, tmp_path / "out")

    scales = [
        tensors[f"transformer.layers.1.attention.{name}cache_scaling_factor"] for name in ("k_", "v_", "kv_")
    ]
    smallest = 1.0 if kv == "FP8" else 0.0
    keys, values = max(3.0 / divisor, smallest), 900.0 / divisor
    assert [scale.shape for scale in scales] == [(1,)] * 3
    torch.testing.assert_close(torch.cat(scales), torch.tensor([keys, values, values]), rtol=1e-6, atol=0)
    assert written["quantization"]["kv_cache_quant_algo"] == algo


def _first_stage(layer: nn.Module) -> Tensor:
    """Return the weight as the first of its quantizer's formats rounds it."""
    stage = layer.weight_quantizer.stages()[0]
    return stage(layer.weight.detach())


def _inputs_of(tensors: dict[str, np.ndarray], layer: str) -> tuple[float | None, list[float] | None]:
    scale, factor = (
        tensors.get(f"{layer}.{name}") for name in ("activation_scaling_factor", "prequant_scaling_factor")
    )
    return None if scale is None else float(scale.reshape(())), None if factor is None else factor.tolist()


def _input_state(layer: nn.Module) -> tuple[float | None, list[float] | None]:
    """Return (scale, factor in float16, which fp32 models are written in) of a layer's input."""
    stage = layer.input_quantizer.stages()[0]
    spec, factor = stage.spec, stage.pre_quant_scale
    scale = None
    if stage.enabled and spec is not None and spec.state:
        (amax,) = stage.named_state().values()
        scale = (amax / (spec.global_max or spec.element_type.max)).item()
    return scale, None if factor is None else factor.half().tolist()
