"""config.json of a TensorRT-LLM checkpoint, as for one rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from octavo.core.errors import ExportError
from octavo.exporters.tensorrt_llm.families import Family

# Readers test the producer's name and version, so they name the dialect; `written_by` names the writer.
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_NORM_EPSILON = (
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "norm_epsilon",
    "norm_eps",
    "layernorm_epsilon",
)
_POSITIONS = ("n_positions", "max_position_embeddings", "max_seq_len", "max_sequence_length")
_EXPERTS = ("num_local_experts", "num_experts", "moe_num_experts")
_DEFAULT_POSITIONS = 2048
_AS_THEY_ARE, _RENORMALIZE = (
    0,
    1,
)  # whether the router's weights of the chosen experts are made to add up to 1


@dataclass(frozen=True)
class ModelFacts:
    """What config.json says of a model and its framework's config does not.

    Attributes:
        sizes: Its sizes, by the names of `ModelDescription.hyperparameters`.
        dtype: Dtype of everything that is not quantized.
        vocab_size: Rows of the token embedding, padding for INT4 included.
        has_dense_bias: Whether the attention's output layer has a bias.
        has_head_bias: Whether the head has one.
    """

    sizes: Mapping[str, int]
    dtype: torch.dtype
    vocab_size: int
    has_dense_bias: bool
    has_head_bias: bool


def peer_config(config: Mapping[str, Any], family: Family, facts: ModelFacts) -> dict[str, Any]:
    """Return the fields that ModelOpt writes, but for `quantization` and `mapping`.

    Args:
        config: The model's hyperparameters, as in the framework's config.json.
        family: Its family.
        facts: What else is to be said.

    Raises:
        ExportError: the model's sizes are not known.
    """
    sizes = _sizes(facts.sizes)
    dtype = str(facts.dtype).removeprefix("torch.")
    written = {
        "producer": {**_PRODUCER, "written_by": f"octavo {version('octavo')}"},
        "architecture": (config.get("architectures") or [""])[0],
        "dtype": dtype,
        "logits_dtype": "float16" if dtype == "bfloat16" else dtype,
        "num_hidden_layers": sizes["num_layers"],
        "num_attention_heads": sizes["num_heads"],
        "num_key_value_heads": sizes["num_kv_heads"],
        "hidden_size": sizes["hidden_size"],
        "norm_epsilon": _first(config, _NORM_EPSILON, 1e-5),
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": _first(config, _POSITIONS, _DEFAULT_POSITIONS),
        "hidden_act": family.hidden_act or config.get("hidden_act"),
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "head_size": sizes["head_dim"],
        "intermediate_size": sizes["intermediate_size"],
        "position_embedding_type": "rope_gpt_neox",
        "share_embedding_table": family.has_shared_head(config),
        "residual_mlp": False,
        "bias": facts.has_dense_bias,
        "rotary_pct": 1.0,
        "rank": 0,
        "decoder": family.decoder,
        "rmsnorm": family.norm == "rms",
        "lm_head_bias": facts.has_head_bias,
        **family.config,
    }
    experts = _first(config, _EXPERTS, 0)
    if experts:
        written["moe"] = {
            "num_experts": experts,
            "top_k": config.get("num_experts_per_tok"),
            "normalization_mode": _RENORMALIZE if family.sums_to_one(config) else _AS_THEY_ARE,
        }
    return written


def reader_config(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return the fields that the reader needs and that ModelOpt does not write, or writes with other values.

    Arguments are as in `peer_config`.

    Raises:
        ExportError: its positions are scaled in a way that is not written.
    """
    rope = dict(config.get("rope_parameters") or {})
    base = rope.pop("rope_theta", config.get("rope_theta"))
    part = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        raise ExportError(
            "positions of this model are scaled by longrope, for which TensorRT-LLM has fields of its own that are not "
            "written yet; use export_hf_checkpoint"
        )
    written: dict[str, Any] = {} if base is None else {"rotary_base": float(base)}
    if part is not None:
        written["rotary_pct"] = float(part)
    if kind != "default":
        written["rotary_scaling"] = {**rope, "type": kind}
    return {**written, **family.reader_fields(config)}


def _sizes(found: Mapping[str, int]) -> dict[str, int]:
    missing = [name for name in ("num_layers", "num_heads", "hidden_size") if name not in found]
    if missing:
        raise ExportError(
            f"the model's config does not give {', '.join(missing)}, which config.json of a TensorRT-LLM checkpoint "
            f"needs; it gives {', '.join(sorted(found))}"
        )
    usual = {
        "num_kv_heads": found["num_heads"],
        "head_dim": found["hidden_size"] // found["num_heads"],
        "intermediate_size": 4 * found["hidden_size"],
    }
    return {**usual, **found}


def _first(config: Mapping[str, Any], keys: tuple[str, ...], default: Any) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), default)
