"""The parameters that a rank has, under the names they have in the whole model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from octavo.adapters.megatron_core.names import global_names
from octavo.core.quantizers import TensorQuantizer

# Transformer Engine's names of what the local layer spec calls otherwise.
_RENAMED = (
    (re.compile(r"self_attention\.linear_qkv\.layer_norm_(weight|bias)$"), r"input_layernorm.\1"),
    (re.compile(r"mlp\.linear_fc1\.layer_norm_(weight|bias)$"), r"pre_mlp_layernorm.\1"),
)


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
        names = global_names(chunk)
        for module_name, module in chunk.named_modules():
            if not isinstance(module, TensorQuantizer):
                for own, parameter in module.named_parameters(recurse=False):
                    found[_renamed(f"{names[module_name]}.{own}")] = LocalTensor(parameter, *_rank_in(module))
    return found


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _rank_in(layer: Any) -> tuple[int, int]:
    """Return (rank, ranks) of the group that divides a layer; layers without one are whole."""
    group = getattr(layer, "tp_group", None)
    return (0, 1) if group is None else (group.rank(), group.size())
