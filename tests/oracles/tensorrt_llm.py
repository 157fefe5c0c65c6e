"""What the tensors of a TensorRT-LLM checkpoint stand for, and what each rank must compute with, by numpy alone.

Written from ../shared/specs/trtllm.md (sections 2 to 4), sharing no code with octavo.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from oracles.unified_hf import Array, read_file

__all__ = ["dequantize", "heads_of_rank", "mlp", "read_file", "rows_of_heads"]

Doubles = NDArray[np.float64]
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def dequantize(tensors: Mapping[str, Array], layer: str, quant_algo: str | None) -> Doubles:
    """Return the weight [out, in] of a layer, or [experts, out, in], without the factor on its input."""
    weight = tensors[f"{layer}.weight"]
    if f"{layer}.weights_scaling_factor" not in tensors and f"{layer}.per_channel_scale" not in tensors:
        return weight.astype(np.float64)
    if quant_algo == "FP8_PER_CHANNEL_PER_TOKEN":
        return weight.astype(np.float64) * tensors[f"{layer}.per_channel_scale"].astype(np.float64)[..., None]
    scale = tensors[f"{layer}.weights_scaling_factor"].astype(np.float64)
    if quant_algo == "FP8":
        return weight.astype(np.float64) * scale.reshape((-1, *[1] * (weight.ndim - 1)))
    if quant_algo in ("W8A16", "W8A8_SQ_PER_CHANNEL"):
        return weight.astype(np.float64) * scale[..., None]
    if quant_algo in (
        "W4A16_AWQ",
        "W4A8_AWQ",
    ):  # byte [j, i] holds rows 2j (low) and 2j + 1, two's complement
        low, high = weight.astype(np.int8) << 4 >> 4, weight.astype(np.int8) >> 4
        codes = np.stack([low, high], -2).reshape(*weight.shape[:-2], -1, weight.shape[-1])
        return codes * np.repeat(scale, codes.shape[-1] // scale.shape[-1], -1)
    if quant_algo in ("NVFP4", "NVFP4_AWQ"):
        codes = _E2M1[np.stack([weight & 0xF, weight >> 4], -1).reshape(*weight.shape[:-1], -1)]
        step = scale * float(tensors[f"{layer}.weights_scaling_factor_2"])
        return codes * np.repeat(step, codes.shape[-1] // step.shape[-1], -1)
    raise AssertionError(f"the oracle does not know {quant_algo}")


def heads_of_rank(heads: int, kv_heads: int, tp: int, rank: int) -> tuple[list[int], list[int]]:
    """Return which query heads a rank has, and which key/value heads these attend to."""
    own = list(range(rank * heads // tp, (rank + 1) * heads // tp))
    return own, sorted({head // (heads // kv_heads) for head in own})


def rows_of_heads(heads: int, kv_heads: int, head_size: int, tp: int, rank: int) -> list[int]:
    """Return which rows of the whole joined q, k, v a rank has."""
    query, shared = heads_of_rank(heads, kv_heads, tp, rank)
    chosen = [*query, *(heads + head for head in shared), *(heads + kv_heads + head for head in shared)]
    return [head * head_size + row for head in chosen for row in range(head_size)]


def mlp(tensors: Mapping[str, Array], layer: str, quant_algo: str | None, x: Doubles) -> Doubles:
    """Return what a rank adds to the output [tokens, hidden] of an MLP; of experts, what each adds: [experts, …].

    Rows of a joined `fc` are [linear; activated]. Factors on inputs and biases are left out.
    """
    inner = x @ np.swapaxes(dequantize(tensors, f"{layer}.fc", quant_algo), -1, -2)
    down = np.swapaxes(dequantize(tensors, f"{layer}.proj", quant_algo), -1, -2)
    if f"{layer}.gate.weight" in tensors:
        inner = _act(inner) * (x @ dequantize(tensors, f"{layer}.gate", quant_algo).T)
    elif inner.shape[-1] == 2 * down.shape[-2]:
        linear, activated = np.split(inner, 2, -1)
        inner = _act(activated) * linear
    else:
        inner = _act(inner)
    return inner @ down


def _act(x: Doubles) -> Doubles:
    return x * (1 + np.tanh(x / 2)) / 2
