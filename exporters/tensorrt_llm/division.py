"""Division: how the ranks of a stage divide one tensor; the rules are in sharding.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import UnsupportedError
from octavo.exporters.tensorrt_llm.layout import head_size, kv_heads, num_experts, size_of


@dataclass(frozen=True)
class Division:
    """How the ranks of a stage divide a tensor.

    Attributes:
        dim: Which dim they divide, from the end; None where each has the whole tensor.
        sections: Relative lengths of what is joined along that dim; each section is divided by itself.
        head_size: Length of a head where sections are counted in heads, which are repeated where there are fewer than
            ranks; half of it in a tensor of packed pairs of rows. 0 elsewhere.
        rows: Length of that dim in a checkpoint of one rank, where it may be padded for ranks; 0 elsewhere.
        padding: What it is padded with.
        is_expert: Whether dim 0 is the experts, which groups of ranks divide first.
    """

    dim: int | None
    sections: tuple[int, ...] = (1,)
    head_size: int = 0
    rows: int = 0
    padding: float = 0.0
    is_expert: bool = False


def division_of(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> Division:
    """Return how a tensor is divided.

    Args:
        name: Its name, `transformer.layers.0.attention.qkv.weight`, say.
        shape: Its shape, as a whole or on a rank.
        config: config.json.

    Raises:
        UnsupportedError: no rule is known for it.
    """
    parts = name.split(".")
    layer, tensor = parts[-2] if len(parts) > 1 else "", parts[-1]
    if layer == "vocab_embedding":
        return _of_embedding(config)
    _refuse_unknown(name, parts, shape, config)
    is_expert = _is_expert(parts, shape, config)
    side = next((side for side, layers in rules()["layers"].items() if layer in layers), None)
    dim = None if side is None else rules()[side].get(_kind(tensor, shape[1:] if is_expert else shape))
    if dim is None:
        return Division(None, is_expert=is_expert)
    if layer == "qkv":
        heads = (size_of(config, "num_attention_heads"), kv_heads(config), kv_heads(config))
        return Division(dim, heads, head_size(config))
    if layer == "lm_head":  # a padded row of zeros has the scale 1, as 0 would be divided by
        padding = 0.0 if tensor in ("weight", "bias") else 1.0
        return Division(dim, rows=size_of(config, "vocab_size"), padding=padding)
    is_joined = layer == "fc" and _joins_two(parts, is_expert, config)
    return Division(dim, (1, 1) if is_joined else (1,), is_expert=is_expert)


def _of_embedding(config: Mapping[str, Any]) -> Division:
    if not config.get("use_parallel_embedding", False):
        return Division(None)
    by_columns = config.get("embedding_sharding_dim", 0) == 1
    return Division(-1) if by_columns else Division(-2, rows=size_of(config, "vocab_size"))


def _refuse_unknown(name: str, parts: Sequence[str], shape: Sequence[int], config: Mapping[str, Any]) -> None:
    reason = None
    if unknown := set(parts) & set(rules()["undivided"]):
        reason = f"layers of the kind {', '.join(unknown)} are only kept whole"
    elif parts[-2:-1] in (["q_layernorm"], ["k_layernorm"]) and len(shape) > 1:
        reason = f"a norm of shape {list(shape)} differs for each head"
    elif parts[-2:-1] == ["qkv"] and any(key in config for key in ("block_configs", "layer_configs")):
        reason = "layers of this architecture differ in their number of heads"
    if reason is not None:
        raise UnsupportedError(f"how ranks divide tensor {name!r} is not known: {reason}; use tp 1")


def _kind(tensor: str, shape: Sequence[int]) -> str:
    """Return the name that the rules have for a tensor of a layer: scales go by their shape."""
    if tensor == "per_channel_scale":
        return "row_scale"
    if tensor != "weights_scaling_factor":
        return tensor
    if math.prod(shape) == 1:
        return "one_scale"
    return "row_scale" if len(shape) == 1 else "block_scale"


def _is_expert(parts: Sequence[str], shape: Sequence[int], config: Mapping[str, Any]) -> bool:
    """Whether dim 0 of a tensor is experts: a model that has some may have plain MLPs, too."""
    experts = num_experts(config)
    if not experts or parts[-3:-1] not in (["mlp", "fc"], ["mlp", "proj"]):
        return False
    if (
        parts[-1] == "weights_scaling_factor" and len(shape) == 2
    ):  # [experts, out or 1]; of a plain MLP [out, blocks]
        return experts % shape[0] == 0
    return len(shape) > (2 if parts[-1] in ("weight", "weights_scaling_factor") else 1)


def _joins_two(parts: Sequence[str], is_expert: bool, config: Mapping[str, Any]) -> bool:
    if "shared_expert" in parts:
        return True
    is_gated = config.get("hidden_act") in rules()["gated"]
    has_gate = num_experts(config) > 0 or config.get("architecture") in rules()["separate_gate"]
    return is_gated and (is_expert or not has_gate)


@lru_cache(maxsize=1)
def rules() -> dict[str, Any]:
    """Return what sharding.yaml says."""
    import yaml

    text = Path(__file__).with_name("sharding.yaml").read_text(encoding="utf-8")
    rules: dict[str, Any] = yaml.safe_load(text)
    return rules
