"""The parameters that a rank has, under the names they have in the whole model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from octavo.core.quantizers import TensorQuantizer

# Transformer Engine's names for what the local layer spec calls otherwise.
_RENAMED = (
    (re.compile(r"self_attention\.linear_qkv\.layer_norm_(weight|bias)"), r"input_layernorm.\1"),
    (re.compile(r"mlp\.linear_fc1\.layer_norm_(weight|bias)"), r"pre_mlp_layernorm.\1"),
    (re.compile(r"mlp\.experts\.(linear_fc[12])\.weight(\d+)"), r"mlp.experts.local_experts.\2.\1.weight"),
)
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


@dataclass(frozen=True)
class LocalTensor:
    """A rank's part of one parameter.

    Attributes:
        parameter: It.
        rank: Which of the ranks that divide the parameter this one is.
        ranks: How many these are.
    """

    parameter: nn.Parameter
    rank: int
    ranks: int


def as_chunks(model: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """Return the bare parts of a model: the one, or of interleaved pipelines several, that a rank has."""
    from megatron.core.utils import unwrap_model

    return unwrap_model([model] if isinstance(model, nn.Module) else list(model))  # type: ignore[no-any-return]


def local_tensors(chunks: Sequence[nn.Module]) -> dict[str, LocalTensor]:
    """Return the parameters of a rank by their names in the whole model; those of quantizers are left out."""
    found: dict[str, LocalTensor] = {}
    for chunk in chunks:
        modules = dict(chunk.named_modules())
        for module_name, module in modules.items():
            if isinstance(module, TensorQuantizer):
                continue
            for own, parameter in module.named_parameters(recurse=False):
                name = whole_name(f"{module_name}.{own}", modules)
                found[name] = LocalTensor(parameter, *_rank_in(module))
    return found


def _rank_in(layer: Any) -> tuple[int, int]:
    """Return (rank, ranks) of the group that divides a layer; layers without one are whole."""
    group = getattr(layer, "tp_group", None)
    return (0, 1) if group is None else (group.rank(), group.size())


def whole_name(name: str, modules: Mapping[str, Any]) -> str:
    """Return a name with layers and experts counted over all ranks; `modules` are those of the rank, by name."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    layer = _LAYER.match(f"{name}.")
    if layer is None:
        return name
    block = modules[layer[0].removesuffix(".")]
    rest = f"{name}."[layer.end() :]
    expert = _EXPERT.search(f".{rest}")
    if expert is not None:
        number = block.mlp.local_expert_indices[int(expert[1])]
        rest = rest.replace(f"local_experts.{expert[1]}.", f"local_experts.{number}.", 1)
    return f"decoder.layers.{block.layer_number - 1}.{rest}".removesuffix(".")
