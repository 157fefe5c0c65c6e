"""Tiny Hugging Face checkpoints of every architecture that Megatron-core's importer knows, and layouts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo

VOCABULARY = 66  # which 4 does not divide
LAYOUTS = {
    "tp1": {},
    "tp2": {"tp": 2},
    "pp2": {"pp": 2},
    "ep2": {"ep": 2},
    "tp2pp2": {"tp": 2, "pp": 2},
    "tp4": {"tp": 4},
}
DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "mistral": {**DECODER, "sliding_window": None},
    "qwen2": {**DECODER, "tie_word_embeddings": True},
    "qwen3": {**DECODER, "head_dim": 32},
    "mixtral": {**DECODER, **EXPERTS},
    "qwen3_moe": {
        **DECODER,
        "head_dim": 32,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_positions": 32,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
    },
}
FORMATS = {
    "fp8": octavo.FP8_DEFAULT_CFG,
    "fp8_kv": octavo.merge_configs(octavo.FP8_DEFAULT_CFG, octavo.FP8_KV_CFG),
    "nvfp4": octavo.NVFP4_DEFAULT_CFG,
    "rotated": {
        "quant_cfg": {
            "*[qk]_bmm_quantizer": {"num_bits": (4, 3), "rotate": True},
            "default": {"enable": False},
        },
        "algorithm": "max",
    },
    "int8_rows": {
        "quant_cfg": {
            "*weight_quantizer": {"num_bits": 8, "axis": 0},
            **{f"*{name}*": {"enable": False} for name in ("embed_tokens", "lm_head", "output_layer")},
            "default": {"enable": False},
        },
        "algorithm": "max",
    },
}
TOKENS = torch.randint(1, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))


def model_of(kind: str, **changes: Any) -> nn.Module:
    """Return the tiny model of that type, every parameter random, norms and biases too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**MODELS[kind], **changes})
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    return model


def save(kind: str, folder: Path, **changes: Any) -> None:
    """Write such a model's checkpoint and its logits for `TOKENS` beside it."""
    model = model_of(kind, **changes)
    model.save_pretrained(folder)
    with torch.no_grad():
        save_file({"logits": model(TOKENS).logits}, folder / "logits.st")


def tensors_of(folder: Path, pattern: str = "model*.safetensors") -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint's shards."""
    return {name: tensor for path in folder.glob(pattern) for name, tensor in load_file(path).items()}
