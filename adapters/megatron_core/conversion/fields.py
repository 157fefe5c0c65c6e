"""What Megatron-core's GPTModel must be told to be the model of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from octavo.core.errors import UnsupportedError

_ROPE_OF_LLAMA_3 = {  # what Megatron-core's `rope_scaling` computes; only the factor is a parameter of it
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class GptFields:
    """Arguments that make a GPTModel.

    Attributes:
        transformer: Of `TransformerConfig`.
        gpt: Of `GPTModel`.
        spec: Of `get_gpt_layer_local_spec`.
    """

    transformer: Mapping[str, Any]
    gpt: Mapping[str, Any]
    spec: Mapping[str, Any]


def gpt_fields(config: Any) -> GptFields:
    """Return the arguments for a Hugging Face config (transformers ≥ 5, any object with its attributes).

    Dropout is off: checkpoints are imported to be calibrated, fine-tuned and exported.

    Raises:
        UnsupportedError: the architecture, or a variant of it that the config asks for, has no counterpart.
    """
    fields = _ARCHITECTURES.get(config.model_type)
    if fields is None:
        raise UnsupportedError(
            f"{config.model_type} has no counterpart in Megatron-core that Octavo knows; it knows "
            f"{', '.join(sorted(_ARCHITECTURES))}"
        )
    return fields(config)


def _llama(config: Any) -> GptFields:
    _refuse(config, "attention_bias", "mlp_bias")
    return _rotary(config)


def _mistral(config: Any) -> GptFields:
    if config.sliding_window is not None:
        _refuse(config, "sliding_window")
    return _rotary(config)


def _qwen2(config: Any) -> GptFields:
    _refuse(config, "use_sliding_window")
    return _rotary(config, add_qkv_bias=True)


def _qwen3(config: Any) -> GptFields:
    _refuse(config, "use_sliding_window", "attention_bias")
    return _rotary(config, qk_layernorm=True)


def _mixtral(config: Any) -> GptFields:
    if config.sliding_window is not None:
        _refuse(config, "sliding_window")
    return _rotary(config, **_experts(config, config.intermediate_size, True))


def _qwen3_moe(config: Any) -> GptFields:
    _refuse(config, "use_sliding_window", "attention_bias", "mlp_only_layers")
    if config.decoder_sparse_step != 1:
        _refuse(config, "decoder_sparse_step")
    experts = _experts(config, config.moe_intermediate_size, config.norm_topk_prob)
    return _rotary(config, qk_layernorm=True, **experts)


def _experts(config: Any, width: int, is_normalized: bool) -> dict[str, Any]:
    """Return the fields of a mixture of experts; weights of the chosen ones add up to 1 where `is_normalized`."""
    return {
        "num_moe_experts": config.num_local_experts,
        "moe_router_topk": config.num_experts_per_tok,
        "moe_ffn_hidden_size": width,
        "moe_router_pre_softmax": not is_normalized,
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
    }


def _rotary(config: Any, **own: Any) -> GptFields:
    """Return the fields of decoders with rotary positions, RMS norms and gated layers."""
    if config.hidden_act != "silu":
        _refuse(config, "hidden_act")
    heads = config.num_attention_heads
    transformer = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "ffn_hidden_size": config.intermediate_size,
        "layernorm_epsilon": config.rms_norm_eps,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        **_NO_DROPOUT,
        **own,
    }
    gpt = {
        **_outside(config, config.max_position_embeddings),
        "position_embedding_type": "rope",
        **_rope(config.rope_parameters),
    }
    return GptFields(transformer, gpt, _spec(transformer))


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    kind, fields = parameters["rope_type"], {"rotary_base": parameters["rope_theta"]}
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"rotary positions of part of a head are not imported yet; found {parameters}")
    if kind == "default":
        return fields
    if kind == "llama3" and all(parameters[name] == value for name, value in _ROPE_OF_LLAMA_3.items()):
        return {**fields, "rope_scaling": True, "rope_scaling_factor": parameters["factor"]}
    raise UnsupportedError(
        f"Megatron-core's rotary positions are plain, or Llama 3's with {_ROPE_OF_LLAMA_3}; the config has {parameters}"
    )


def _gpt2(config: Any) -> GptFields:
    _refuse(config, "scale_attn_by_inverse_layer_idx", "add_cross_attention")
    if config.activation_function != "gelu_new":
        _refuse(config, "activation_function")
    transformer = {
        "num_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "ffn_hidden_size": config.n_inner or 4 * config.n_embd,
        "layernorm_epsilon": config.layer_norm_epsilon,
        "normalization": "LayerNorm",
        "activation_func": _gelu_tanh,
        "add_bias_linear": True,
        **_NO_DROPOUT,
    }
    gpt = {**_outside(config, config.n_positions), "position_embedding_type": "learned_absolute"}
    return GptFields(transformer, gpt, _spec(transformer))


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


_NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
_ARCHITECTURES: Mapping[str, Callable[[Any], GptFields]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}


def _outside(config: Any, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_sequence_length": positions,
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
    }


def _spec(transformer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": transformer.get("num_moe_experts"),
        "moe_grouped_gemm": False,
        "qk_layernorm": transformer.get("qk_layernorm", False),
        "normalization": transformer["normalization"],
    }


def _refuse(config: Any, *names: str) -> None:
    """Refuse a config in which one of these is on."""
    for name in names:
        if value := getattr(config, name, None):
            raise UnsupportedError(
                f"a {config.model_type} with {name}={value!r} is not imported into Megatron-core yet"
            )
