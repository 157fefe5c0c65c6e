"""Tiny models of many architectures, with random weights that a seed fixes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Architectures whose configs call their sizes something else.
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 128, "max_seq_len": 64},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "rotary_dim": 8},
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}

# Keys and values alone, calibrated.
FP8_KV: dict[str, Any] = {**octavo.FP8_KV_CFG, "algorithm": "max"}
NVFP4_KV: dict[str, Any] = {**octavo.NVFP4_KV_CFG, "algorithm": "max"}


def tiny_model(model_type: str, attention: str | None = None, **changes: Any) -> nn.Module:
    """Return a causal language model of that type, in eval mode."""
    sizes = {**OWN_SIZES.get(model_type, SIZES), **TOKENS, **changes}
    config = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


def tokens(batch: int = 2, length: int = 12) -> Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(0))


def padded_batch() -> dict[str, Tensor]:
    """Return a batch whose first row has padding on the left and whose second has it on the right."""
    ids, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.int64)
    mask[0, :5] = 0
    mask[1, 8:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor] | None = None) -> Tensor:
    return model(**(batch or {"input_ids": tokens()})).logits


def switch_off(model: nn.Module) -> None:
    """Leave every quantizer in place and make none of them round."""
    for module in model.modules():
        if isinstance(module, octavo.TensorQuantizer):
            module.enabled = False
