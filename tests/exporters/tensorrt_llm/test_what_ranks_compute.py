"""Ranks compute together what one rank does: their parts are the right rows, not only ones that can be put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.trtllm_checkpoints import FAMILIES, FORMATS, HEAD_SIZE, HEADS, HIDDEN, config_of, tensors_of
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.sharding import shard_tensor
from oracles import tensorrt_llm as oracle
from oracles.unified_hf import Array

BLOCK = "transformer.layers.0"
MLP = f"{BLOCK}.mlp"


def as_numpy(tensor: Tensor) -> Array:
    import ml_dtypes

    floats = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn}
    if tensor.dtype in floats:
        raw = {1: torch.uint8, 2: torch.int16}[tensor.itemsize]
        return tensor.contiguous().view(raw).numpy().view(floats[tensor.dtype])
    return tensor.numpy()


def ranks_of(config: dict[str, Any], layout: Layout) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    tensors = tensors_of(config)
    ranks: list[dict[str, Array]] = [{} for _ in range(layout.world_size)]
    for name, tensor in tensors.items():
        for rank, (local_name, part) in shard_tensor(name, tensor, config, layout).items():
            ranks[rank][local_name] = as_numpy(part)
    return {name: as_numpy(tensor) for name, tensor in tensors.items()}, ranks


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("quant_algo", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_rank_has_the_heads_that_its_queries_attend_to(
    family: str, quant_algo: str | None, tp: int
) -> None:
    config = config_of(family, quant_algo)
    whole, ranks = ranks_of(config, Layout(tp, 1))
    qkv = oracle.dequantize(whole, f"{BLOCK}.attention.qkv", quant_algo)
    for rank, tensors in enumerate(ranks):
        rows = oracle.rows_of_heads(HEADS, config["num_key_value_heads"], HEAD_SIZE, tp, rank)
        own = oracle.dequantize(tensors, f"{BLOCK}.attention.qkv", quant_algo)
        np.testing.assert_array_equal(own, qkv[rows])
        if f"{BLOCK}.attention.qkv.bias" in whole:
            bias = f"{BLOCK}.attention.qkv.bias"
            np.testing.assert_array_equal(tensors[bias].view(np.int16), whole[bias].view(np.int16)[rows])


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("quant_algo", FORMATS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mixtral"])
def test_what_ranks_add_up_to_is_the_mlp(family: str, quant_algo: str | None, tp: int) -> None:
    whole, ranks = ranks_of(config_of(family, quant_algo), Layout(tp, 1))
    x = np.random.default_rng(0).normal(size=(3, HIDDEN))
    added = sum(oracle.mlp(tensors, MLP, quant_algo, x) for tensors in ranks)
    np.testing.assert_allclose(added, oracle.mlp(whole, MLP, quant_algo, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("tp", "ep"), [(2, 1), (2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("quant_algo", FORMATS)
def test_what_ranks_add_up_to_is_every_expert(quant_algo: str | None, tp: int, ep: int) -> None:
    whole, ranks = ranks_of(config_of("mixtral", quant_algo), Layout(tp, 1, ep))
    x = np.random.default_rng(0).normal(size=(3, HIDDEN))
    added = np.zeros((4, 3, HIDDEN))
    for rank, tensors in enumerate(ranks):
        group = rank % ep  # the reader's rule: groups of experts take turns over the ranks of a stage
        added[group * 4 // ep : (group + 1) * 4 // ep] += oracle.mlp(tensors, MLP, quant_algo, x)
        router = f"{MLP}.router.weight"
        np.testing.assert_array_equal(tensors[router], whole[router])
    np.testing.assert_allclose(added, oracle.mlp(whole, MLP, quant_algo, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("quant_algo", FORMATS)
def test_what_ranks_add_up_to_is_the_attention_output(quant_algo: str | None, tp: int) -> None:
    whole, ranks = ranks_of(config_of("gpt2", quant_algo), Layout(tp, 1))
    name = f"{BLOCK}.attention.dense"
    parts = [oracle.dequantize(tensors, name, quant_algo) for tensors in ranks]
    np.testing.assert_array_equal(np.concatenate(parts, 1), oracle.dequantize(whole, name, quant_algo))
    for suffix in ("bias", "activation_scaling_factor", "weights_scaling_factor_2"):
        if f"{name}.{suffix}" in whole:
            expected = whole[f"{name}.{suffix}"].astype(np.float64)
            assert all(
                np.array_equal(each[f"{name}.{suffix}"].astype(np.float64), expected) for each in ranks
            )
    if f"{name}.prequant_scaling_factor" in whole:
        factors = [each[f"{name}.prequant_scaling_factor"].astype(np.float64) for each in ranks]
        expected = whole[f"{name}.prequant_scaling_factor"].astype(np.float64)
        np.testing.assert_array_equal(np.concatenate(factors), expected)
