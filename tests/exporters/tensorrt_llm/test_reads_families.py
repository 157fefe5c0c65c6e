"""Layers get the framework's names, and the rows that are theirs, in every family and format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import octavo
from helpers.trtllm_checkpoints import (
    BLOCK,
    FORMATS,
    HEAD_SIZE,
    HEADS,
    INTER,
    config_of,
    same,
    tensors_of,
    write_one_rank,
)
from octavo.core.packed import PackedChain, PackedTensor
from octavo.exporters.tensorrt_llm.reader import TensorRtLlmCheckpoint
from oracles import tensorrt_llm as oracle

FIRST = "transformer.layers.0"


def opened(
    tmp_path: Path, family: str, algo: str | None, **changes: Any
) -> tuple[dict[str, oracle.Array], TensorRtLlmCheckpoint]:
    """A checkpoint of one rank as the oracle reads it, and the reader of the same on four ranks."""
    config = config_of(family, algo, **changes)
    one = write_one_rank(tmp_path / "one", config, tensors_of(config))
    octavo.reshard_tensorrt_llm(one, tmp_path / "four", 2, 2)
    return oracle.read_file(one / "rank0.safetensors"), TensorRtLlmCheckpoint(tmp_path / "four")


def values(found: Tensor | PackedTensor | PackedChain) -> np.ndarray:
    if isinstance(found, Tensor):
        return found.double().numpy()
    packed = found.first if isinstance(found, PackedChain) else found
    packed.check()
    return packed.dequantize(torch.float32).double().numpy()


@pytest.mark.parametrize("algo", FORMATS)
@pytest.mark.parametrize("family", ["llama", "mqa", "qwen2"])
def test_separate_layers(tmp_path: Path, family: str, algo: str | None) -> None:
    whole, checkpoint = opened(tmp_path, family, algo)
    found, layers = dict(checkpoint.tensors()), "model.layers.0"
    kv_heads = {"llama": 4, "mqa": 1, "qwen2": 2}[family]

    qkv = oracle.dequantize(whole, f"{FIRST}.attention.qkv", algo)
    parts = [values(found[f"{layers}.self_attn.{letter}_proj.weight"]) for letter in "qkv"]
    assert [part.shape[0] // HEAD_SIZE for part in parts] == [HEADS, kv_heads, kv_heads]
    np.testing.assert_allclose(np.concatenate(parts), qkv, rtol=1e-6)
    for ours, theirs in {"gate_proj": "fc", "up_proj": "gate", "down_proj": "proj"}.items():
        expected = oracle.dequantize(whole, f"{FIRST}.mlp.{theirs}", algo)
        np.testing.assert_allclose(values(found[f"{layers}.mlp.{ours}.weight"]), expected, rtol=1e-6)
    biases = [name for name in found if name.endswith(".bias")]
    assert len(biases) == (12 if family == "qwen2" else 0)
    if family == "qwen2":
        bias = np.concatenate([values(found[f"{layers}.self_attn.{letter}_proj.bias"]) for letter in "qkv"])
        np.testing.assert_array_equal(bias, whole[f"{FIRST}.attention.qkv.bias"].astype(np.float64))


@pytest.mark.parametrize("algo", FORMATS)
def test_layers_that_the_framework_joins_in_another_order(tmp_path: Path, algo: str | None) -> None:
    """Its rows are [gate; up], TensorRT-LLM's [up; gate]."""
    whole, checkpoint = opened(tmp_path, "phi3", algo)
    found = dict(checkpoint.tensors())

    up, gate = np.split(oracle.dequantize(whole, f"{FIRST}.mlp.fc", algo), 2)
    joined = values(found["model.layers.0.mlp.gate_up_proj.weight"])
    np.testing.assert_allclose(joined, np.concatenate([gate, up]), rtol=1e-6)
    qkv = oracle.dequantize(whole, f"{FIRST}.attention.qkv", algo)
    np.testing.assert_allclose(values(found["model.layers.0.self_attn.qkv_proj.weight"]), qkv, rtol=1e-6)


@pytest.mark.parametrize("algo", [None, "FP8", "W8A16", "W4A16_AWQ", "NVFP4"])
def test_experts(tmp_path: Path, algo: str | None) -> None:
    whole, checkpoint = opened(tmp_path, "mixtral", algo)
    found = dict(checkpoint.tensors())

    fc, proj = (oracle.dequantize(whole, f"{FIRST}.mlp.{name}", algo) for name in ("fc", "proj"))
    for expert in range(4):
        name = f"model.layers.0.block_sparse_moe.experts.{expert}"
        np.testing.assert_allclose(values(found[f"{name}.w3.weight"]), fc[expert, :INTER], rtol=1e-6)
        np.testing.assert_allclose(values(found[f"{name}.w1.weight"]), fc[expert, INTER:], rtol=1e-6)
        np.testing.assert_allclose(values(found[f"{name}.w2.weight"]), proj[expert], rtol=1e-6)
    router = found["model.layers.0.block_sparse_moe.gate.weight"]
    assert isinstance(router, Tensor)
    np.testing.assert_array_equal(router.numpy(), whole[f"{FIRST}.mlp.router.weight"])
    if algo == "W4A16_AWQ":
        states = checkpoint.activations()
        factor = states["model.layers.0.block_sparse_moe.experts.2.w1.input_quantizer"].pre_quant_scale
        assert factor is not None
        np.testing.assert_array_equal(
            factor.numpy(), whole[f"{FIRST}.mlp.fc.prequant_scaling_factor"][2].astype(np.float32)
        )


@pytest.mark.parametrize("algo", ["W4A16_AWQ", "W4A8_AWQ", "NVFP4_AWQ", "W8A8_SQ_PER_CHANNEL", "FP8"])
def test_formats_of_layers(tmp_path: Path, algo: str) -> None:
    _, checkpoint = opened(tmp_path, "llama", algo)
    layer = checkpoint.layers["model.layers.3.mlp.down_proj"]

    assert layer.smoothing == ("" if algo == "FP8" else "scaled")
    assert (layer.then is not None) == (algo == "W4A8_AWQ")
    if "SQ" not in algo and algo != "FP8":
        assert f"block{{-1:{BLOCK}}}" in str(layer.weight)
    weights = {
        name.removesuffix(".weight"): found
        for name, found in checkpoint.tensors()
        if not isinstance(found, Tensor)
    }
    assert weights.keys() == checkpoint.layers.keys()
    for name, found in weights.items():
        packed = found.first if isinstance(found, PackedChain) else found
        assert packed.spec == checkpoint.layers[name].weight


def test_norms_that_multiply_by_one_more(tmp_path: Path) -> None:
    config = config_of("llama", None, architecture="GemmaForCausalLM", share_embedding_table=True)
    tensors = tensors_of(config)
    folder = write_one_rank(tmp_path / "one", config, tensors)

    found = dict(TensorRtLlmCheckpoint(folder).tensors())

    for ours, theirs in {
        "model.norm.weight": "transformer.ln_f.weight",
        "model.layers.1.post_attention_layernorm.weight": "transformer.layers.1.post_layernorm.weight",
    }.items():
        expected = (tensors[theirs].float() - 1).bfloat16()
        assert same(found[ours], expected)  # type: ignore[arg-type]
    assert same(found["model.embed_tokens.weight"], tensors["transformer.vocab_embedding.weight"])  # type: ignore[arg-type]
    assert "lm_head.weight" not in found
