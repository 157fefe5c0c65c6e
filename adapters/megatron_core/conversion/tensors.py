"""Megatron-core's tensors, and of which tensors of a Hugging Face checkpoint each is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from octavo.core.errors import UnsupportedError, listed
from octavo.core.model.description import BlockDescription, ModelDescription
from octavo.core.model.skeleton import Skeleton
from octavo.core.modules import quantized_class

Division = Literal["none", "rows", "groups", "gated", "vocabulary", "columns"]
"""How tensor parallelism divides a tensor: rows of the whole, of query groups, of gate and up each; columns."""


@dataclass(frozen=True)
class Part:
    """A checkpoint's tensor, or rows of one.

    Attributes:
        name: Its name in the checkpoint.
        shape: Shape of these rows, [out, in] or [out].
        start: The first of them.
        is_transposed: The checkpoint holds [in, out].
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    is_transposed: bool = False

    def place(self, dim: int, start: int) -> tuple[int, int]:
        """Return (dim, entry) in the checkpoint's tensor of entry `start` along `dim` of these rows."""
        entry = start + self.start if dim == 0 else start
        return (len(self.shape) - 1 - dim if self.is_transposed else dim), entry


@dataclass(frozen=True)
class MegatronTensor:
    """One parameter, all ranks together.

    Attributes:
        name: Its name, layers and experts counted over all ranks: `decoder.layers.3.mlp.linear_fc1.weight`.
        parts: What it is made of.
        division: How tensor parallelism divides it.
        groups: Runs in which the parts are interleaved, where `division` is `groups`.
    """

    name: str
    parts: tuple[Part, ...]
    division: Division
    groups: int = 1

    @property
    def dim(self) -> int:
        """The dim along which parts lie together and ranks divide."""
        return 1 if self.division == "columns" and len(self.parts[0].shape) > 1 else 0

    @property
    def is_divided(self) -> bool:
        """Whether each rank has a part; otherwise all have all of it."""
        return self.division != "none" and not (self.division == "columns" and self.dim == 0)

    def groups_over(self, ranks: int) -> int:
        """Return in how many runs the parts are interleaved for so many ranks."""
        return ranks if self.division == "gated" else self.groups


@dataclass(frozen=True)
class _Rule:
    """Roles that one Megatron layer stands for."""

    roles: tuple[str, ...]
    layer: str
    division: Division = "none"


_QKV = ("attention.q", "attention.k", "attention.v")
_OUTSIDE = (
    _Rule(("embedding",), "embedding.word_embeddings", "vocabulary"),
    _Rule(("embedding.position",), "embedding.position_embeddings"),
    _Rule(("norm.final",), "decoder.final_layernorm"),
    _Rule(("lm_head",), "output_layer", "vocabulary"),
)
_IN_BLOCKS = (
    _Rule(("norm.attention",), "input_layernorm"),
    _Rule(_QKV, "self_attention.linear_qkv", "groups"),
    _Rule(("attention.qkv",), "self_attention.linear_qkv", "groups"),
    _Rule(("attention.q_norm",), "self_attention.q_layernorm"),
    _Rule(("attention.k_norm",), "self_attention.k_layernorm"),
    _Rule(("attention.out",), "self_attention.linear_proj", "columns"),
    _Rule(("norm.mlp",), "pre_mlp_layernorm"),
    _Rule(("mlp.gate", "mlp.up"), "mlp.linear_fc1", "gated"),
    _Rule(("mlp.up",), "mlp.linear_fc1", "rows"),
    _Rule(("mlp.down",), "mlp.linear_fc2", "columns"),
    _Rule(("moe.router",), "mlp.router"),
)
_EXPERTS = "moe.experts"


def megatron_tensors(skeleton: Skeleton, description: ModelDescription) -> dict[str, MegatronTensor]:
    """Return every parameter of the Megatron model that a Hugging Face model is, by name.

    Args:
        skeleton: The Hugging Face model.
        description: What its layers are.

    Raises:
        UnsupportedError: it has layers or tensors for which Megatron-core's GPTModel has no place; they are named.
    """
    tensors = _Tensors(skeleton, description)
    found = list(tensors.outside())
    for number, block in enumerate(description.blocks):
        found += tensors.of_block(number, block)
    _check_complete(skeleton, {part.name for tensor in found for part in tensor.parts})
    return {tensor.name: tensor for tensor in found}


class _Tensors:
    """Finds the tensors of a Hugging Face model by role."""

    def __init__(self, skeleton: Skeleton, description: ModelDescription) -> None:
        self._names, self._experts = skeleton.layout.names, skeleton.layout.parts
        self._shapes = skeleton.shapes()
        self._modules = dict(skeleton.model.named_modules())
        self._segments = description.segments
        sizes = description.hyperparameters
        self._groups = sizes.get("num_kv_heads", sizes["num_heads"])
        self._outside_roles = description.roles

    def outside(self) -> Iterator[MegatronTensor]:
        """Yield the tensors outside the blocks."""
        yield from self._by_rules(_OUTSIDE, self._outside_roles, "")

    def of_block(self, number: int, block: BlockDescription) -> Iterator[MegatronTensor]:
        """Yield the tensors of one block."""
        prefix = f"decoder.layers.{number}."
        known = {role for rule in _IN_BLOCKS for role in rule.roles} | {_EXPERTS}
        if unknown := [role for role in block.roles if role not in known]:
            raise UnsupportedError(
                f"{block.name} has {listed(unknown)}, for which Megatron-core's GPTModel of the local layer spec has "
                "no place"
            )
        yield from self._by_rules(_IN_BLOCKS, block.roles, prefix)
        if _EXPERTS in block.roles:
            yield from self._of_experts(block.roles[_EXPERTS], f"{prefix}mlp.experts.local_experts")

    def _by_rules(
        self, rules: tuple[_Rule, ...], roles: Mapping[str, str], prefix: str
    ) -> Iterator[MegatronTensor]:
        taken: set[str] = set()
        for rule in rules:
            if not all(role in roles and role not in taken for role in rule.roles):
                continue
            taken.update(rule.roles)
            for own in ("weight", "bias"):
                parts = [part for role in rule.roles for part in self._parts(roles[role], own)]
                if parts:
                    groups = self._groups if rule.division == "groups" else 1
                    name = f"{prefix}{rule.layer}.{own}"
                    yield MegatronTensor(name, tuple(parts), rule.division, groups)

    def _parts(self, module: str, own: str) -> list[Part]:
        """Return a layer's weight or bias, or each of the tensors that lie in it one after the other."""
        name = self._names.get(f"{module}.{own}")
        if name is None:
            return []
        quantized = quantized_class(type(self._modules[module]))
        is_transposed = own == "weight" and quantized is not None and quantized.weight_is_transposed
        shape = self._shapes[name]
        whole = Part(name, shape[::-1] if is_transposed else shape, 0, is_transposed)
        segments = self._segments.get(module)
        if segments is None:
            return [whole]
        if segments.groups > 1:
            raise UnsupportedError(
                f"{name} holds {', '.join(segments.rows_per_group)} interleaved in {segments.groups} groups, which is "
                "not divided for Megatron-core yet"
            )
        parts, start = [], 0
        for rows in segments.rows_per_group.values():
            parts.append(replace(whole, shape=(rows, *whole.shape[1:]), start=start))
            start += rows
        return parts

    def _of_experts(self, module: str, prefix: str) -> Iterator[MegatronTensor]:
        stacks = {name: parts for name, parts in self._experts.items() if name.startswith(f"{module}.")}
        if not stacks:
            raise UnsupportedError(
                f"checkpoints hold the experts of {module} in one tensor, which is not divided for Megatron-core yet"
            )
        for matrices in stacks.values():
            for expert, names in enumerate(matrices):
                layer = "linear_fc1" if len(names) > 1 else "linear_fc2"
                division: Division = "gated" if len(names) > 1 else "columns"
                parts = tuple(Part(name, self._shapes[name]) for name in names)
                yield MegatronTensor(f"{prefix}.{expert}.{layer}.weight", parts, division)


def _check_complete(skeleton: Skeleton, used: set[str]) -> None:
    """Refuse a model that has tensors without a place."""
    if lost := skeleton.missing(used):
        raise UnsupportedError(
            f"Megatron-core's GPTModel has no place for {listed(lost)} of this {type(skeleton.model).__name__}"
        )
