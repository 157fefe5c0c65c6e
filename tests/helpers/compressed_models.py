"""Every format of weights by a config, for small models whose weights are packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import octavo
from helpers.tiny import tiny_llama, token_batches


def weights_only(**attributes: Any) -> dict[str, Any]:
    """Return a config that rounds weights alone, by their largest magnitudes."""
    return {
        "quant_cfg": [
            {"quantizer_name": "*weight_quantizer", "cfg": attributes},
            {"quantizer_name": "*lm_head*", "enable": False},
            {"quantizer_name": "*embed_tokens*", "enable": False},
        ],
        "algorithm": "max",
    }


FORMATS: Mapping[str, str | dict[str, Any]] = {
    "int8": "INT8_DEFAULT_CFG",
    "int8 tensor": weights_only(num_bits=8),
    "int4": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int3": weights_only(num_bits=3, block_sizes={-1: 64}),
    "fp8": "FP8_DEFAULT_CFG",
    "fp8 channel": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "fp8 square": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "nvfp4 static": "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG",
    "mxfp4": "MXFP4_DEFAULT_CFG",
    "mxfp6": "MXFP6_DEFAULT_CFG",
    "mxfp8": "MXFP8_DEFAULT_CFG",
    "mxint8": "MXINT8_DEFAULT_CFG",
    "int4 then fp8": "W4A8_AWQ_BETA_CFG",
    "nvfp4 then fp8": "W4A8_NVFP4_FP8_CFG",
    "smoothed int8": "INT8_SMOOTHQUANT_CFG",
    "smoothed int4": "INT4_AWQ_CFG",
    "low rank": "NVFP4_SVDQUANT_DEFAULT_CFG",
}


def quantized_llama(config: str | dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Return a quantized Llama of one block."""
    model = tiny_llama(dtype, num_hidden_layers=1)
    return octavo.quantize(model, config, token_batches(), quiet=True)
