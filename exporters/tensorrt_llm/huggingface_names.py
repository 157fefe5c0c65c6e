"""Hugging Face's names of the layers that a TensorRT-LLM checkpoint holds, and which of their rows are whose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError, UnsupportedError, nearest
from octavo.core.model.description import BlockDescription, ModelDescription
from octavo.core.model.family_map import describe_by_sizes
from octavo.exporters.tensorrt_llm.families import family_of
from octavo.exporters.tensorrt_llm.joined import HEAD, OUTSIDE, PLAIN
from octavo.exporters.tensorrt_llm.layout import head_size, kv_heads, num_experts, size_of
from octavo.exporters.tensorrt_llm.stages import LAYER


@dataclass(frozen=True, eq=False)
class NamedRows:
    """A layer of the framework's checkpoint, as part of one of TensorRT-LLM's.

    Attributes:
        name: Its name.
        rows: Its rows, int64 [n]; None for all, in their order.
        expert: Of which of the stacked experts, or None.
    """

    name: str
    rows: Tensor | None = None
    expert: int | None = None


class HuggingFaceNames:
    """Names for one checkpoint.

    Args:
        config: Its config.json.

    Attributes:
        family: What TensorRT-LLM says of models of its kind.

    Raises:
        CheckpointError: config.json lacks a size.
        UnsupportedError: the names of the architecture, or of this variant of it, are not known.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._heads = (size_of(config, "num_attention_heads"), kv_heads(config), kv_heads(config))
        self._head_size = head_size(config)
        self._shared_width = config.get("moe_shared_expert_intermediate_size")
        self._expert_width = config.get("moe_intermediate_size") or size_of(config, "intermediate_size")
        self._experts = num_experts(config)
        self._model_type = _model_type(config)
        self._description = _description(self._model_type, config, self._head_size)
        self.family = family_of(self._model_type)
        self._plain = {name: role for role, name in {**PLAIN, **self.family.names}.items()}

    def parts_of(self, layer: str) -> list[NamedRows]:
        """Return the framework's layers that make up a layer (`transformer.layers.0.attention.qkv`).

        Raises:
            UnsupportedError: its place in the framework's model is not known.
        """
        found = LAYER.fullmatch(layer)
        if found is None:
            return [NamedRows(self._outside(layer))]
        block = self._description.blocks[int(found["number"])]
        return list(self._in_block(layer, block, found["after"].removeprefix(".")))

    def attention_of(self, layer: str) -> str:
        """Return the framework's attention layer for `transformer.layers.0.attention`."""
        name = self.parts_of(f"{layer}.qkv")[0].name
        return name.rpartition(".")[0]

    def _outside(self, layer: str) -> str:
        found = [role for role, name in {**OUTSIDE, HEAD: HEAD}.items() if name == layer]
        if not found or found[0] not in self._description.roles:
            raise self._unknown(layer)
        return self._description.roles[found[0]]

    def _in_block(self, layer: str, block: BlockDescription, name: str) -> Iterator[NamedRows]:
        if self._experts and name in ("mlp.fc", "mlp.proj", "mlp.router"):
            yield from self._of_experts(layer, block, name.removeprefix("mlp."))
            return
        entry = self._entry(name, block)
        if entry is None:
            raise self._unknown(layer)
        roles, fused = entry["roles"], block.roles.get(entry.get("as", ""))
        if fused is not None:
            index = self._description.segments[fused].index
            yield NamedRows(fused, torch.cat([index(role) for role in roles]).argsort())
        elif any(role not in block.roles for role in roles):
            raise self._unknown(layer)
        elif len(roles) == 1:
            yield NamedRows(block.roles[roles[0]])
        else:
            for role, rows in zip(roles, self._consecutive(roles), strict=True):
                yield NamedRows(block.roles[role], rows)

    def _entry(self, name: str, block: BlockDescription) -> Mapping[str, Any] | None:
        """Return what the table says of a layer of a block; norms have a role of their own."""
        if name in self._plain:
            return {"roles": [self._plain[name]]}
        entry: Mapping[str, Any] | None = (
            _fc_entry(block) if name == "mlp.fc" else _table()["blocks"].get(name)
        )
        return entry

    def _consecutive(self, roles: Sequence[str]) -> Iterator[Tensor]:
        """Return the rows of separate layers: the branches of the shared expert, or q, k and v."""
        lengths = [heads * self._head_size for heads in self._heads]
        if len(roles) == 2:
            lengths = [self._shared_width or self._expert_width] * 2
        return iter(torch.split(torch.arange(sum(lengths)), lengths))

    def _of_experts(self, layer: str, block: BlockDescription, name: str) -> Iterator[NamedRows]:
        table = _table()["experts"].get(self._model_type)
        if table is None:
            raise self._unknown(layer)
        if name == "router":
            yield NamedRows(f"{block.name}.{table['router']}")
            return
        two = torch.split(torch.arange(2 * self._expert_width), self._expert_width)
        halves = two if len(table[name]) == 2 else (None,)
        for expert in range(self._experts):
            each = table["each"].format(expert=expert)
            for matrix, rows in zip(table[name], halves, strict=True):
                yield NamedRows(f"{block.name}.{each}.{matrix}", rows, expert)

    def _unknown(self, layer: str) -> UnsupportedError:
        return UnsupportedError(
            f"layer {layer!r} has no place that is known in models of type {self._model_type!r} of the framework; "
            "`octavo reshard` divides such checkpoints without knowing it"
        )


def _fc_entry(block: BlockDescription) -> Mapping[str, Any]:
    table = _table()
    if table["both"]["as"] in block.roles:
        both: Mapping[str, Any] = table["both"]
        return both
    return {"roles": [table["activated"] if table["activated"] in block.roles else "mlp.up"]}


def _model_type(config: Mapping[str, Any]) -> str:
    known, architecture = _table()["architectures"], config.get("architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(f"config.json must name an architecture, found {architecture!r}")
    if architecture not in known:
        raise UnsupportedError(
            f"the framework's names of {architecture} are not known; known are {', '.join(known)}."
            f"{nearest(architecture, known)}"
        )
    return str(known[architecture])


def _description(model_type: str, config: Mapping[str, Any], length: int) -> ModelDescription:
    sizes = {
        "num_layers": size_of(config, "num_hidden_layers"),
        "num_heads": size_of(config, "num_attention_heads"),
        "num_kv_heads": kv_heads(config),
        "head_dim": length,
        "hidden_size": size_of(config, "hidden_size"),
        "intermediate_size": size_of(config, "intermediate_size"),
    }
    fields = _table()["variants"].get(model_type, {})
    variant = {name: config.get(field) for name, field in fields.items()}
    description = describe_by_sizes(model_type, sizes, {**variant, "multi_query": kv_heads(config) == 1})
    if description is None:
        raise UnsupportedError(
            f"the framework's names of this variant of {config.get('architecture')} are not known: config.json says "
            + ", ".join(
                f"{field} {config.get(field)!r}" for field in [*fields.values(), "num_key_value_heads"]
            )
        )
    return description.renamed(_table()["renamed"].get(model_type, {}))


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("huggingface_names.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table
