"""The reader opens ModelOpt's own checkpoints of four ranks: each weight has the values that the oracle computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from octavo.core.packed import PackedChain, PackedTensor
from octavo.exporters.tensorrt_llm.reader import TensorRtLlmCheckpoint
from oracles import tensorrt_llm as oracle
from oracles.unified_hf import Array, as_bits

HEADS, KV_HEADS, HEAD_SIZE = 8, 4, 32
PRESETS = {
    "FP8_DEFAULT_CFG": "FP8",
    "FP8_DEFAULT_CFG+FP8_KV_CFG": "FP8",
    "INT4_AWQ_CFG": "W4A16_AWQ",
    "INT8_SMOOTHQUANT_CFG": "W8A8_SQ_PER_CHANNEL",
    "INT8_WEIGHT_ONLY_CFG": "W8A16",
    "NVFP4_DEFAULT_CFG": "NVFP4",
    "W4A8_AWQ_BETA_CFG": "W4A8_AWQ",
}
LAYER_OF = {
    "self_attn.q_proj": ("attention.qkv", slice(0, HEADS * HEAD_SIZE)),
    "self_attn.k_proj": ("attention.qkv", slice(HEADS * HEAD_SIZE, (HEADS + KV_HEADS) * HEAD_SIZE)),
    "self_attn.v_proj": ("attention.qkv", slice((HEADS + KV_HEADS) * HEAD_SIZE, None)),
    "self_attn.o_proj": ("attention.dense", slice(None)),
    "mlp.gate_proj": ("mlp.fc", slice(None)),
    "mlp.up_proj": ("mlp.gate", slice(None)),
    "mlp.down_proj": ("mlp.proj", slice(None)),
}


@pytest.fixture(scope="module")
def references(shared: Path) -> Path:
    return shared / "reference" / "modelopt" / "dense-trtllm"


def place(name: str) -> tuple[int, str, slice]:
    """Return block, layer in the checkpoint and rows of a Hugging Face name."""
    number, layer = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return int(number), *LAYER_OF[layer]


def bits(values: np.ndarray) -> Array:
    return as_bits(values.astype(np.float32), "bfloat16")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", ["tp1pp1", "tp2pp2"])
def test_every_weight_has_the_oracles_values(references: Path, preset: str, layout: str) -> None:
    found = dict(TensorRtLlmCheckpoint(references / preset / layout).tensors())
    whole = oracle.read_file(references / preset / "tp1pp1" / "rank0.safetensors")

    packed = {name: value for name, value in found.items() if not isinstance(value, Tensor)}
    assert len(packed) == 14
    for name, value in packed.items():
        block, layer, rows = place(name)
        prefix = f"transformer.layers.{block}.{layer}"
        expected = oracle.dequantize(whole, prefix, PRESETS[preset])[rows]
        if isinstance(value, PackedChain):  # rounded to bf16, then to FP8 with the second scale
            (amax,) = value.state
            second = float(whole[f"{prefix}.weights_scaling_factor_2"][0])
            assert amax.item() == np.float32(second) * np.float32(448)
            value = value.first
        assert isinstance(value, PackedTensor)
        np.testing.assert_array_equal(bits(value.dequantize().float().numpy()), bits(expected), err_msg=name)


@pytest.mark.parametrize("preset", PRESETS)
def test_names_and_other_tensors_are_those_of_the_model(shared: Path, references: Path, preset: str) -> None:
    """Norms, embedding and head are untouched; a factor on the input is divided out of the weight."""
    base = load_file(shared / "reference" / "modelopt" / "dense" / "base" / "model.safetensors")
    checkpoint = TensorRtLlmCheckpoint(references / preset / "tp2pp2")
    found, states = dict(checkpoint.tensors()), checkpoint.activations()

    assert found.keys() == base.keys()
    for name, value in found.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, base[name]), name
            continue
        weight = value.first if isinstance(value, PackedChain) else value
        assert tuple(weight.shape) == tuple(base[name].shape)
        state = states.get(name.removesuffix("weight") + "input_quantizer")
        values = weight.dequantize(torch.float32)
        if state is not None and state.pre_quant_scale is not None:
            values = values * state.pre_quant_scale
        error = (values - base[name].float()).norm() / base[name].float().norm()
        assert error < 0.15, (name, error)


@pytest.mark.parametrize("preset", PRESETS)
def test_activations_have_the_scales_of_the_files(references: Path, preset: str) -> None:
    checkpoint = TensorRtLlmCheckpoint(references / preset / "tp2pp2")
    whole = oracle.read_file(references / preset / "tp1pp1" / "rank0.safetensors")
    largest = {"FP8": 448, "W4A8_AWQ": 448, "NVFP4": 2688, "W8A8_SQ_PER_CHANNEL": 127}

    states = checkpoint.activations()

    inputs = {name: state for name, state in states.items() if name.endswith("input_quantizer")}
    assert len(inputs) == (0 if PRESETS[preset] == "W8A16" else 14)
    for name, state in inputs.items():
        block, layer, _ = place(name.removesuffix(".input_quantizer"))
        prefix = f"transformer.layers.{block}.{layer}"
        if state.state:
            scale = np.float32(whole[f"{prefix}.activation_scaling_factor"].reshape(()))
            (amax,) = state.state.values()
            assert amax.item() == scale * np.float32(largest[PRESETS[preset]])
        factor = whole.get(f"{prefix}.prequant_scaling_factor")
        assert (factor is None) == (state.pre_quant_scale is None)
        if factor is not None and state.pre_quant_scale is not None:
            np.testing.assert_array_equal(state.pre_quant_scale.numpy(), factor.astype(np.float32))
    assert (len(states) - len(inputs)) == (4 if "KV" in preset else 0)


def test_the_cache(references: Path) -> None:
    checkpoint = TensorRtLlmCheckpoint(references / "FP8_DEFAULT_CFG+FP8_KV_CFG" / "tp2pp2")
    whole = oracle.read_file(references / "FP8_DEFAULT_CFG+FP8_KV_CFG" / "tp1pp1" / "rank0.safetensors")

    states = checkpoint.activations()

    for block in range(2):
        for letter in "kv":
            state = states[f"model.layers.{block}.self_attn.{letter}_bmm_quantizer"]
            scale = whole[f"transformer.layers.{block}.attention.{letter}_cache_scaling_factor"]
            assert state.state["amax"].item() == scale[0] * np.float32(448)
    assert checkpoint.describe()["kv_cache_quant_algo"] == "FP8"
    assert set(checkpoint.cache_without_scales()) == {"k_bmm_quantizer", "v_bmm_quantizer"}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_inspect_shows(references: Path, preset: str) -> None:
    checkpoint = TensorRtLlmCheckpoint(references / preset / "tp2pp2")

    described = json.loads(json.dumps(checkpoint.describe()))

    assert described["layers"] == {PRESETS[preset]: 10}  # two blocks: qkv, dense, fc, gate, proj
    assert described["ranks"] == {"tp": 2, "pp": 2, "ep": 1}
    assert len(checkpoint.layers) == 14
    block = {"W4A16_AWQ": 128, "W4A8_AWQ": 128, "NVFP4": 16}.get(PRESETS[preset])
    if block is not None:
        assert {f"block{{-1:{block}}}" in str(layer.weight) for layer in checkpoint.layers.values()} == {True}
