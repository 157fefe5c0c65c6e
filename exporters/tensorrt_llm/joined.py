"""Joined layers: which rows of which layers make each layer of a TensorRT-LLM checkpoint, by canonical roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.core.errors import ExportError
from octavo.core.model.description import BlockDescription, ModelDescription
from octavo.core.model.fused import ATTENTION_ROLES
from octavo.core.model.segments import RowSegments
from octavo.exporters.tensorrt_llm.source import WeightSource

PLAIN = {
    "norm.attention": "input_layernorm",
    "norm.mlp": "post_layernorm",
    "attention.q_norm": "attention.q_layernorm",
    "attention.k_norm": "attention.k_layernorm",
    "moe.router": "mlp.router",
    "moe.shared_gate": "mlp.shared_expert_gate",
}
OUTSIDE = {
    "embedding": "transformer.vocab_embedding",
    "embedding.position": "transformer.position_embedding",
    "norm.embedding": "transformer.ln_embed",
    "norm.final": "transformer.ln_f",
}
EXPERTS, HEAD = "moe.experts", "lm_head"
_LINEAR = {
    *ATTENTION_ROLES,
    "attention.qkv",
    "attention.out",
    "mlp.gate",
    "mlp.up",
    "mlp.gate_up",
    "mlp.down",
    EXPERTS,
}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one layer, by its name in the source: those that `index` (int64 [n]) names, or all."""

    layer: str
    index: Tensor | None = None


@dataclass(frozen=True)
class JoinedLayer:
    """A linear layer of a checkpoint: rows of layers of the model, one below the other.

    Attributes:
        name: Its name, blocks counted over all stages: `transformer.layers.5.attention.qkv`.
        parts: What it is made of; of each expert, where it stacks experts.
        stacks_experts: Whether its tensors have a leading dim of experts.
    """

    name: str
    parts: tuple[tuple[Rows, ...], ...]
    stacks_experts: bool = False

    @property
    def layers(self) -> list[str]:
        """The layers of the model that it is made of."""
        return list(dict.fromkeys(rows.layer for part in self.parts for rows in part))


def block_name(number: int) -> str:
    """Return the name of a block, counted over all stages."""
    return f"transformer.layers.{number}"


def block_layers(
    description: ModelDescription, number: int, source: WeightSource, names: Mapping[str, str]
) -> Iterator[JoinedLayer]:
    """Yield the linear layers of a block.

    `names` has the roles that a family calls otherwise.

    Raises:
        ExportError: the block has a role that checkpoints have no place for, or lacks one; or its experts are held in
            another way than as a matrix for each projection.
    """
    block, segments = description.blocks[number], description.segments
    _check_roles(block, names)
    roles, prefix = block.roles, block_name(number)
    yield _layer(f"{prefix}.attention.qkv", *_attention(block, segments))
    if "attention.out" in roles:
        yield _layer(f"{prefix}.attention.dense", Rows(roles["attention.out"]))
    if EXPERTS in roles:
        yield from _experts(prefix, roles[EXPERTS], source)
        yield from _shared_expert(f"{prefix}.mlp.shared_expert", roles)
    else:
        yield from _mlp(f"{prefix}.mlp", roles, segments)


def head_layer(description: ModelDescription, source: WeightSource) -> JoinedLayer:
    """Return the head; where files have none, the token embedding's weight is the head's, too."""
    head = description.roles.get("lm_head", "")
    layer = head if f"{head}.weight" in source else description.roles["embedding"]
    return _layer(HEAD, Rows(layer))


def plain_modules(
    description: ModelDescription, number: int, names: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (name in the checkpoint, module) of a block's norms and router, which are never quantized.

    `names` has the roles that a family calls otherwise.
    """
    roles, prefix = description.blocks[number].roles, block_name(number)
    yield from ((f"{prefix}.{name}", roles[r]) for r, name in {**PLAIN, **names}.items() if r in roles)


def outer_modules(description: ModelDescription) -> Iterator[tuple[str, str]]:
    """Yield (name in the checkpoint, module) of embeddings and norms outside the blocks."""
    roles = description.roles
    yield from ((name, roles[role]) for role, name in OUTSIDE.items() if role in roles)


def _layer(name: str, *rows: Rows) -> JoinedLayer:
    return JoinedLayer(name, (rows,))


def _attention(block: BlockDescription, segments: Mapping[str, RowSegments]) -> Iterator[Rows]:
    for role in ATTENTION_ROLES:
        if role in block.roles:
            yield Rows(block.roles[role])
            continue
        fused = block.roles["attention.qkv"]
        if fused not in segments or role not in segments[fused].rows_per_group:
            raise ExportError(
                f"which rows of {fused} are {role} is not known; add `segments` to the model's family map"
            )
        yield Rows(fused, segments[fused].index(role))


def _mlp(name: str, roles: Mapping[str, str], segments: Mapping[str, RowSegments]) -> Iterator[JoinedLayer]:
    """Yield the layers of an MLP: the activated branch is called `fc`, whatever it is called elsewhere."""
    if "mlp.down" in roles:
        yield _layer(f"{name}.proj", Rows(roles["mlp.down"]))
    if "mlp.gate" in roles:
        yield _layer(f"{name}.fc", Rows(roles["mlp.gate"]))
        yield _layer(f"{name}.gate", Rows(roles["mlp.up"]))
    elif "mlp.up" in roles:
        yield _layer(f"{name}.fc", Rows(roles["mlp.up"]))
    if "mlp.gate_up" in roles:  # in one layer the branch that is not activated comes first
        fused = roles["mlp.gate_up"]
        halves = (Rows(fused, segments[fused].index(role)) for role in ("mlp.up", "mlp.gate"))
        yield _layer(f"{name}.fc", *halves)


def _shared_expert(name: str, roles: Mapping[str, str]) -> Iterator[JoinedLayer]:
    """Yield the layers of the MLP beside the experts, whose branches are one layer."""
    if "mlp.up" in roles:
        yield _layer(f"{name}.fc", Rows(roles["mlp.up"]), Rows(roles["mlp.gate"]))
        yield _layer(f"{name}.proj", Rows(roles["mlp.down"]))


def _experts(prefix: str, module: str, source: WeightSource) -> Iterator[JoinedLayer]:
    held = source.experts.get(module, {})
    kinds = {len(matrices[0]): matrices for matrices in held.values()}
    if set(kinds) != {1, 2}:
        raise ExportError(
            f"experts of TensorRT-LLM checkpoints have a gate, an up and a down projection, a matrix each; the "
            f"framework holds those of {module} in another way"
        )
    for name, matrices in (("mlp.fc", kinds[2]), ("mlp.proj", kinds[1])):
        parts = tuple(tuple(Rows(m.removesuffix(".weight")) for m in reversed(each)) for each in matrices)
        yield JoinedLayer(f"{prefix}.{name}", parts, stacks_experts=True)


def _check_roles(block: BlockDescription, names: Mapping[str, str]) -> None:
    unknown = sorted(block.roles.keys() - _LINEAR - PLAIN.keys() - names.keys())
    has_qkv = "attention.qkv" in block.roles or all(role in block.roles for role in ATTENTION_ROLES)
    if unknown or not has_qkv:
        problem = f"no place for {', '.join(unknown)}" if unknown else "q, k and v in every block"
        raise ExportError(
            f"TensorRT-LLM checkpoints that Octavo writes have {problem}; {block.name} has the roles "
            f"{', '.join(block.roles)}. export_hf_checkpoint writes any model"
        )
