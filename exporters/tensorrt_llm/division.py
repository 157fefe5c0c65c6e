"""Division: how the ranks of a stage divide one tensor; the rules are in sharding.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import UnsupportedError
from octavo.exporters.tensorrt_llm.layout import kv_heads, num_experts, size_of


@dataclass(frozen=True)
class Division:
    """How the ranks of a stage divide a tensor.

    Attributes:
        dim: Which dim they divide, from the end; None where each has the whole tensor.
        sections: Relative lengths of what is joined along that dim; each section is divided by itself.
        repeats: Whether a section that is shorter than there are ranks is repeated: sections are counted in heads.
        padding: What is appended where the dim is not divisible; None where that is refused.
        is_expert: Whether dim 0 is the experts, which groups of ranks divide first.
    """

    dim: int | None
    sections: tuple[int, ...] = (1,)
    repeats: bool = False
    padding: float | None = None
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
    _refuse_unknown(name, parts, layer, shape)
    is_expert = _is_expert(parts, shape, config)
    side = next((side for side, layers in _rules()["layers"].items() if layer in layers), None)
    dim = None if side is None else _rules()[side].get(_kind(tensor, shape[1:] if is_expert else shape))
    if dim is None:
        return Division(None, is_expert=is_expert)
    if layer == "qkv":
        heads = (size_of(config, "num_attention_heads"), kv_heads(config), kv_heads(config))
        return Division(dim, heads, repeats=True)
    if layer == "lm_head":
        return Division(dim, padding=1.0 if "scale" in _kind(tensor, shape) else 0.0)
    is_joined = layer == "fc" and _joins_two(parts, is_expert, config)
    return Division(dim, (1, 1) if is_joined else (1,), is_expert=is_expert)


def stage_of(name: str, pp_size: int) -> int:
    """Return which stage has a tensor that is in no layer.

    Raises:
        UnsupportedError: no rule is known for it, and there are several stages.
    """
    parts = name.split(".")
    if pp_size == 1 or set(parts) & set(_rules()["first_stage"]):
        return 0
    if set(parts) & set(_rules()["last_stage"]):
        return pp_size - 1
    raise UnsupportedError(
        f"which of {pp_size} stages has tensor {name!r} is not known; tensors outside layers that are known: "
        f"{', '.join(_rules()['first_stage'] + _rules()['last_stage'])}. Use one stage"
    )


def _of_embedding(config: Mapping[str, Any]) -> Division:
    if not config.get("use_parallel_embedding", False):
        return Division(None)
    return Division(-1) if config.get("embedding_sharding_dim", 0) == 1 else Division(-2, padding=0.0)


def _refuse_unknown(name: str, parts: Sequence[str], layer: str, shape: Sequence[int]) -> None:
    if set(parts) & set(_rules()["undivided"]) or (
        layer in ("q_layernorm", "k_layernorm") and len(shape) > 1
    ):
        raise UnsupportedError(
            f"how ranks divide tensor {name!r} of shape {list(shape)} is not known; layers {_rules()['undivided']} and "
            "norms of single heads can only be kept whole: use tp 1"
        )


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
    """Whether dim 0 of a tensor is experts: it has one dim more than in a plain MLP, or one scale per expert."""
    if not num_experts(config) or parts[-3:-1] not in (["mlp", "fc"], ["mlp", "proj"]):
        return False
    dims_of_plain = {"weight": 2, "bias": 1, "prequant_scaling_factor": 1, "weights_scaling_factor": 2}
    is_scale_each = (
        parts[-1] == "weights_scaling_factor" and len(shape) == 2 and num_experts(config) % shape[0] == 0
    )
    return len(shape) > dims_of_plain.get(parts[-1], 1) or (is_scale_each and shape[1] == 1)


def _joins_two(parts: Sequence[str], is_expert: bool, config: Mapping[str, Any]) -> bool:
    if "shared_expert" in parts:
        return True
    is_gated = config.get("hidden_act") in _rules()["gated"]
    has_gate = num_experts(config) > 0 or config.get("architecture") in _rules()["separate_gate"]
    return is_gated and (is_expert or not has_gate)


@lru_cache(maxsize=1)
def _rules() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("sharding.yaml").read_text(encoding="utf-8")
    rules: dict[str, Any] = yaml.safe_load(text)
    return rules
