"""Tensors of a TensorRT-LLM checkpoint, divided over ranks and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError, ExportError
from octavo.exporters.tensorrt_llm.division import Division, division_of
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.stages import to_local

EMBEDDING, HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"


def shard_tensor(
    name: str, tensor: Tensor, config: Mapping[str, Any], layout: Layout
) -> dict[int, tuple[str, Tensor]]:
    """Divide one tensor of a model.

    Args:
        name: Its name in a checkpoint of one rank.
        tensor: All of it, in the form that §3 of the format's files have (packed weights included).
        config: config.json, whose `mapping` does not matter.
        layout: Over which ranks.

    Returns:
        By rank, the name that the tensor has there (layers count from 0 in each stage) and that rank's part, which
        may share memory with `tensor`. A token embedding that is the head, too (`share_embedding_table`), is written
        as the head where no rank has both.

    Raises:
        ExportError: the tensor cannot be divided equally, or its layer is not one of the config's.
        UnsupportedError: no rule for it is known.
        CheckpointError: `config` lacks a size.
    """
    parts = _split(name, tensor, config, layout)
    stage, local_name = to_local(name, config, layout)
    shards = {rank: (local_name, part) for rank, part in zip(layout.stage(stage), parts, strict=True)}
    if name == EMBEDDING and config.get("share_embedding_table") and layout.pp_size > 1:
        last = layout.stage(layout.pp_size - 1)
        heads = _split(HEAD, tensor, config, layout)
        shards |= {rank: (HEAD, part) for rank, part in zip(last, heads, strict=True)}
    return shards


def merge_tensor(name: str, parts: Sequence[Tensor], config: Mapping[str, Any], layout: Layout) -> Tensor:
    """Put the parts of one tensor together: the inverse of `shard_tensor`.

    Args:
        name: Its name in a checkpoint of one rank, or on these ranks.
        parts: What each rank of its stage has, in order.
        config: config.json.
        layout: Over which ranks it is divided.

    Raises:
        CheckpointError: the parts differ in shape or dtype, or copies of what is repeated differ in a value.
        UnsupportedError: no rule for it is known.
    """
    _check_alike(name, parts, layout)
    if layout.tp_size == 1:
        return parts[0]
    division = division_of(name, parts[0].shape, config)
    if not division.is_expert:
        return _merge(name, parts, division)
    step = layout.moe_ep_size
    return _concatenated([_merge(name, parts[group::step], division) for group in range(step)], 0)


def _split(name: str, tensor: Tensor, config: Mapping[str, Any], layout: Layout) -> list[Tensor]:
    """Return each rank's part of a tensor, for the ranks of one stage."""
    if layout.tp_size == 1:
        return [tensor]
    division = division_of(name, tensor.shape, config)
    if not division.is_expert:
        return _divide(name, tensor, division, layout.tp_size)
    _refuse_unequal(name, tensor, 0, layout.moe_ep_size)
    groups = [
        _divide(name, group, division, layout.moe_tp_size) for group in tensor.chunk(layout.moe_ep_size)
    ]  # a rank's group is its number modulo the number of groups
    return [groups[rank % layout.moe_ep_size][rank // layout.moe_ep_size] for rank in range(layout.tp_size)]


def _divide(name: str, tensor: Tensor, division: Division, ranks: int) -> list[Tensor]:
    dim = division.dim
    if dim is None:
        return [tensor] * ranks
    tensor = _padded(name, tensor, dim, division, ranks)
    divided = []
    for section, length in zip(_sections(name, tensor, dim, division, 1), division.sections, strict=True):
        if division.head_size and length < ranks:
            section = _repeated(name, section, dim, length, ranks)
        _refuse_unequal(name, section, dim, ranks)
        divided.append(section.chunk(ranks, dim))
    return [_concatenated(parts, dim) for parts in zip(*divided, strict=True)]


def _merge(name: str, parts: Sequence[Tensor], division: Division) -> Tensor:
    dim, ranks = division.dim, len(parts)
    if dim is None:
        return _the_same(name, parts)
    merged = []
    by_section = zip(*(_sections(name, part, dim, division, ranks) for part in parts), strict=True)
    for section, length in zip(by_section, division.sections, strict=True):
        copies = ranks // length if division.head_size and length < ranks else 1
        heads = [_the_same(name, section[first : first + copies]) for first in range(0, ranks, copies)]
        merged.append(_concatenated(heads, dim))
    return _unpadded(name, _concatenated(merged, dim), dim, division, ranks)


def _sections(name: str, tensor: Tensor, dim: int, division: Division, ranks: int) -> tuple[Tensor, ...]:
    """Return the sections of a tensor, or of one of `ranks` parts of it."""
    lengths = division.sections
    if division.head_size:
        lengths = tuple(max(1, length // ranks) for length in lengths)
    unit, rest = divmod(tensor.shape[dim], sum(lengths))
    if rest or (division.head_size and unit * 2 not in (division.head_size, 2 * division.head_size)):
        raise CheckpointError(
            f"tensor {name!r} has shape {list(tensor.shape)}; along dim {dim % tensor.dim()} it must hold equal parts "
            f"in the proportion {lengths}" + (f", of {division.head_size} each" if division.head_size else "")
        )
    return torch.split(tensor, [length * unit for length in lengths], dim)


def _repeated(name: str, section: Tensor, dim: int, heads: int, ranks: int) -> Tensor:
    if ranks % heads:
        raise ExportError(
            f"tensor {name!r}: {heads} heads can be neither divided over nor repeated for {ranks} ranks"
        )
    copies = [head for head in section.chunk(heads, dim) for _ in range(ranks // heads)]
    return _concatenated(copies, dim)


def _padded(name: str, tensor: Tensor, dim: int, division: Division, ranks: int) -> Tensor:
    if not division.rows:
        return tensor
    _check_rows(name, tensor.shape[dim], division.rows, division.rows)
    shape = list(tensor.shape)
    shape[dim] = -tensor.shape[dim] % ranks
    padding = torch.full(shape, division.padding).to(tensor.dtype)
    return _concatenated([tensor, padding], dim)


def _unpadded(name: str, tensor: Tensor, dim: int, division: Division, ranks: int) -> Tensor:
    if not division.rows:
        return tensor
    _check_rows(name, tensor.shape[dim], division.rows + -division.rows % ranks, division.rows)
    return tensor.narrow(dim, 0, division.rows)


def _check_rows(name: str, found: int, expected: int, vocab_size: int) -> None:
    if found != expected:
        raise CheckpointError(
            f"tensor {name!r} has {found} rows in all; config.json says vocab_size {vocab_size}, so there must be "
            f"{expected}"
        )


def _concatenated(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return `torch.cat`, of one part that part itself; 8-bit floats go as bytes, which every device joins."""
    parts = [part for part in parts if part.shape[dim]]
    if len(parts) == 1:
        return parts[0]
    if parts[0].element_size() == 1:
        return torch.cat([part.view(torch.uint8) for part in parts], dim).view(parts[0].dtype)
    return torch.cat(list(parts), dim)


def _the_same(name: str, copies: Sequence[Tensor]) -> Tensor:
    """Return what all ranks have."""
    first = copies[0].contiguous().view(-1).view(torch.uint8)
    for rank, copy in enumerate(copies[1:], 1):
        if not torch.equal(first, copy.contiguous().view(-1).view(torch.uint8)):
            raise CheckpointError(
                f"tensor {name!r} must be the same on {len(copies)} ranks, and that of the first differs from that of "
                f"number {rank} after it; the files are of different exports, or damaged"
            )
    return copies[0]


def _check_alike(name: str, parts: Sequence[Tensor], layout: Layout) -> None:
    forms = [(str(part.dtype).removeprefix("torch."), list(part.shape)) for part in parts]
    if len(parts) != layout.tp_size or any(form != forms[0] for form in forms):
        raise CheckpointError(
            f"tensor {name!r} must have one dtype and shape on {layout.tp_size} ranks, found {forms}"
        )


def _refuse_unequal(name: str, tensor: Tensor, dim: int, parts: int) -> None:
    if tensor.shape[dim] % parts:
        raise ExportError(
            f"tensor {name!r} of shape {list(tensor.shape)} cannot be divided in {parts} equal parts along dim "
            f"{dim % tensor.dim()}; choose sizes that divide {tensor.shape[dim]}"
        )
