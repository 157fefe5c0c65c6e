"""Small TensorRT-LLM checkpoints of every format, made of random numbers, with no code of the exporter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, HEADS, HEAD_SIZE, INTER, LAYERS, VOCAB, BLOCK = 32, 8, 16, 64, 4, 50, 16
FORMATS = (
    None, "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W8A16", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ", "NVFP4",
    "NVFP4_AWQ",
)  # fmt: skip
FAMILIES = ("llama", "qwen2", "gpt2", "phi3", "mqa", "mixtral")
_SMOOTHED = ("W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ", "NVFP4_AWQ")
_BLOCKS = ("W4A16_AWQ", "W4A8_AWQ", "NVFP4", "NVFP4_AWQ")
_FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"architecture": "LlamaForCausalLM", "num_key_value_heads": 4},
    "qwen2": {"architecture": "Qwen2ForCausalLM", "num_key_value_heads": 2},
    "gpt2": {"architecture": "GPT2LMHeadModel", "num_key_value_heads": 8, "hidden_act": "gelu", "bias": True},
    "phi3": {"architecture": "Phi3ForCausalLM", "num_key_value_heads": 8, "hidden_act": "swiglu"},
    "mqa": {"architecture": "LlamaForCausalLM", "num_key_value_heads": 1},
    "mixtral": {
        "architecture": "MixtralForCausalLM",
        "num_key_value_heads": 4,
        "hidden_act": "swiglu",
        "moe": {"num_experts": 4, "top_k": 2, "normalization_mode": 1},
    },
}


def config_of(family: str, quant_algo: str | None, **changes: Any) -> dict[str, Any]:
    """Return config.json of a model on one rank."""
    quantization = {"quant_algo": quant_algo, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    config = {
        "dtype": "bfloat16",
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "hidden_act": "silu",
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "head_size": HEAD_SIZE,
        "intermediate_size": INTER,
        "share_embedding_table": False,
        "rank": 0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {**quantization, "group_size": BLOCK} if quant_algo in _BLOCKS else quantization,
    }
    return {**config, **_FAMILY_FIELDS[family], **changes}


def tensors_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Return every tensor of such a model, in the forms of section 3 of the facts."""
    made = _Made(config, seed)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    made.plain("transformer.vocab_embedding.weight", vocab, hidden)
    if config["architecture"] == "GPT2LMHeadModel":
        made.plain("transformer.position_embedding.weight", 24, hidden)
        made.plain("transformer.ln_embed.weight", hidden)
    for layer in range(config["num_hidden_layers"]):
        _add_block(made, f"transformer.layers.{layer}", config)
    made.plain("transformer.ln_f.weight", hidden)
    if not config["share_embedding_table"]:
        made.plain("lm_head.weight", vocab, hidden)
    return made.tensors


def write_one_rank(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint of one rank by safetensors' own writer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
    save_file(dict(tensors), directory / "rank0.safetensors")
    return directory


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether dtype, shape and every bit are equal."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(*(each.contiguous().view(-1).view(torch.uint8) for each in (ours, theirs)))


class _Made:
    def __init__(self, config: Mapping[str, Any], seed: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._quant_algo = config["quantization"]["quant_algo"]
        self._random = torch.Generator().manual_seed(seed)

    def plain(self, name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.tensors[name] = self._normal(*shape).to(dtype)

    def linear(self, name: str, rows: int, columns: int, bias: bool = False, experts: int = 0) -> None:
        stack = (experts,) if experts else ()
        parts = self._parts(rows, columns, stack)
        if self._quant_algo in _SMOOTHED:
            parts["prequant_scaling_factor"] = self._positive(*stack, columns).bfloat16()
        if bias:
            parts["bias"] = self._normal(rows).bfloat16()
        self.tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in parts.items()}

    def _parts(self, rows: int, columns: int, stack: tuple[int, ...]) -> dict[str, Tensor]:
        algo, scale = self._quant_algo, "weights_scaling_factor"
        if algo is None:
            return {"weight": self._normal(*stack, rows, columns).bfloat16()}
        one = {"activation_scaling_factor": self._positive(1)}
        if algo == "FP8":
            each = self._positive(*stack, 1)
            return {"weight": self._e4m3(*stack, rows, columns), scale: each, **one}
        if algo == "FP8_PER_CHANNEL_PER_TOKEN":
            return {
                "weight": self._e4m3(*stack, rows, columns),
                "per_channel_scale": self._positive(*stack, rows),
            }
        if algo in ("W8A16", "W8A8_SQ_PER_CHANNEL"):
            parts = {
                "weight": self._bytes(*stack, rows, columns).view(torch.int8),
                scale: self._positive(*stack, rows),
            }
            return parts if algo == "W8A16" else {**parts, **one}
        if algo in ("W4A16_AWQ", "W4A8_AWQ"):
            codes = self._bytes(*stack, rows // 2, columns).view(torch.int8)
            parts = {"weight": codes, scale: self._positive(*stack, rows, columns // BLOCK)}
            return (
                parts
                if algo == "W4A16_AWQ"
                else {**parts, "weights_scaling_factor_2": self._positive(1), **one}
            )
        blocks = self._positive(*stack, rows, columns // BLOCK).to(torch.float8_e4m3fn)
        scalars = {
            "weights_scaling_factor_2": self._positive(),
            "activation_scaling_factor": self._positive(),
        }
        return {"weight": self._bytes(*stack, rows, columns // 2), scale: blocks, **scalars}

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random)

    def _positive(self, *shape: int) -> Tensor:
        return self._normal(*shape).abs() + 0.1

    def _e4m3(self, *shape: int) -> Tensor:
        return self._normal(*shape).to(torch.float8_e4m3fn)

    def _bytes(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=self._random, dtype=torch.uint8)


def _add_block(made: _Made, name: str, config: Mapping[str, Any]) -> None:
    heads, head_size, hidden = config["num_attention_heads"], config["head_size"], config["hidden_size"]
    inter, has_bias = config["intermediate_size"], config.get("bias", False)
    qkv_bias = has_bias or config["architecture"] == "Qwen2ForCausalLM"
    rows = (heads + 2 * config["num_key_value_heads"]) * head_size
    made.plain(f"{name}.input_layernorm.weight", hidden)
    made.plain(f"{name}.post_layernorm.weight", hidden)
    made.linear(f"{name}.attention.qkv", rows, hidden, qkv_bias)
    made.linear(f"{name}.attention.dense", hidden, heads * head_size, has_bias)
    experts = config.get("moe", {}).get("num_experts", 0)
    if experts:
        made.plain(f"{name}.mlp.router.weight", experts, hidden, dtype=torch.float32)
    is_joined = config["hidden_act"] == "swiglu"
    made.linear(f"{name}.mlp.fc", 2 * inter if is_joined else inter, hidden, has_bias, experts)
    made.linear(f"{name}.mlp.proj", hidden, inter, has_bias, experts)
    if config["hidden_act"] == "silu":
        made.linear(f"{name}.mlp.gate", inter, hidden, has_bias)
