"""Checkpoints in AutoAWQ's and GPTQ's layouts, written by the oracles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.exporters_models import plain_model
from oracles.integer_layouts import awq_tensors, gptq_tensors, values

GROUP = 32


def written(
    folder: Path, config: dict[str, Any], version: int = 2, group: int = GROUP, symmetric: bool = False
) -> dict[str, Tensor]:
    """Write a small Llama whose linear layers have random codes; return what their weights stand for, fp16.

    Args:
        folder: Where to.
        config: Its `quantization_config`.
        version: Of GPTQ's layout.
        group: Inputs that share a scale; -1 for all.
        symmetric: Whether all zero points are the middle of the codes.
    """
    model, random = plain_model(torch.float16), np.random.default_rng(0)
    bits, tensors, expected = config["bits"], {}, {}
    for name, value in model.state_dict().items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value.contiguous()
            continue
        rows, columns = value.shape
        length = columns if group == -1 else group
        codes = random.integers(0, 2**bits, (rows, columns))
        zeros = random.integers(0, 2**bits, (rows, columns // length))
        zeros = np.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
        scales = (random.random((rows, columns // length)) * 0.01 + 0.001).astype(np.float16)
        module = name.removesuffix(".weight")
        if config["quant_method"] == "awq":
            words = awq_tensors(codes, zeros)
        else:
            words = gptq_tensors(codes, zeros, bits, version)
            tensors[f"{module}.g_idx"] = torch.arange(columns, dtype=torch.int32) // length
        for part, array in zip(("qweight", "qzeros", "scales"), (*words, scales.T), strict=True):
            tensors[f"{module}.{part}"] = torch.from_numpy(np.ascontiguousarray(array))
        expected[name] = torch.from_numpy(values(codes, zeros, scales, length))
    described = {**model.config.to_dict(), "dtype": "float16", "quantization_config": config}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return expected


def awq(**changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": None, **changes,
    }  # fmt: skip


def gptq(bits: int = 4, **changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": False,
        "checkpoint_format": "gptq_v2", "true_sequential": True, "lm_head": False, **changes,
    }  # fmt: skip
