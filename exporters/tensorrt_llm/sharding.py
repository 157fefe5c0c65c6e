"""Tensors of a TensorRT-LLM checkpoint, divided over ranks and put together again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError, ExportError
from octavo.exporters.tensorrt_llm.division import Division, division_of, stage_of
from octavo.exporters.tensorrt_llm.layout import Layout, size_of

_LAYER = re.compile(r"(?P<before>(?:^|.*\.)layers\.)(?P<number>\d+)(?P<after>\..*)")
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
        return _merge(name, list(parts), division, config)
    groups = [
        _merge(name, list(parts[group :: layout.moe_ep_size]), division, config)
        for group in range(layout.moe_ep_size)
    ]
    return torch.cat(groups)


def to_local(name: str, config: Mapping[str, Any], layout: Layout) -> tuple[int, str]:
    """Return the stage that has a tensor, and the tensor's name there.

    Raises:
        ExportError: the stages would differ in length, or there is no such layer.
        UnsupportedError: which stage has it is not known.
    """
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return stage_of(name, layout.pp_size), name
    number, layers = int(layer["number"]), size_of(config, "num_hidden_layers")
    if layers % layout.pp_size or number >= layers:
        raise ExportError(
            f"tensor {name!r} cannot be put on one of {layout.pp_size} equal stages of {layers} layers in all"
        )
    stage, local = divmod(number, layers // layout.pp_size)
    return stage, f"{layer['before']}{local}{layer['after']}"


def to_global(name: str, stage: int, config: Mapping[str, Any], layout: Layout) -> str:
    """Return the name in a checkpoint of one rank of a tensor that `stage` calls `name`.

    Raises:
        CheckpointError: a stage has no such layer.
    """
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return name
    number, length = int(layer["number"]), size_of(config, "num_hidden_layers") // layout.pp_size
    if number >= length:
        raise CheckpointError(
            f"tensor {name!r} of stage {stage} is in layer {number}; config.json says that each of {layout.pp_size} "
            f"stages has {length} layers"
        )
    return f"{layer['before']}{stage * length + number}{layer['after']}"


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
    tensor = _padded(tensor, division, ranks)
    _refuse_unequal(name, tensor, dim, sum(division.sections))
    unit = tensor.shape[dim] // sum(division.sections)
    sections = tensor.split([length * unit for length in division.sections], dim)
    divided = []
    for section, length in zip(sections, division.sections, strict=True):
        if division.repeats and length < ranks:
            _refuse_unrepeatable(name, length, ranks)
            section = section.unflatten(dim, (length, unit)).repeat_interleave(ranks // length, dim - 1)
            section = section.flatten(dim - 1, dim)
        _refuse_unequal(name, section, dim, ranks)
        divided.append(section.chunk(ranks, dim))
    return [_concatenated(parts, dim) for parts in zip(*divided, strict=True)]


def _merge(name: str, parts: list[Tensor], division: Division, config: Mapping[str, Any]) -> Tensor:
    dim, ranks = division.dim, len(parts)
    if dim is None:
        return _the_same(name, parts)
    lengths = [max(1, length // ranks) if division.repeats else length for length in division.sections]
    if parts[0].shape[dim] % sum(lengths):
        raise CheckpointError(
            f"tensor {name!r} has shape {list(parts[0].shape)} on a rank, where {lengths} parts of equal length are "
            f"joined along dim {parts[0].dim() + dim}"
        )
    unit = parts[0].shape[dim] // sum(lengths)
    sections = zip(*(part.split([length * unit for length in lengths], dim) for part in parts), strict=True)
    merged = []
    for section, length in zip(sections, division.sections, strict=True):
        copies = ranks // length if division.repeats and length < ranks else 1
        heads = [_the_same(name, section[first : first + copies]) for first in range(0, ranks, copies)]
        merged.append(_concatenated(heads, dim))
    whole = _concatenated(merged, dim)
    return whole if division.padding is None else whole.narrow(dim, 0, _num_rows(name, whole, dim, config))


def _padded(tensor: Tensor, division: Division, ranks: int) -> Tensor:
    rest = -tensor.shape[division.dim] % ranks if division.dim is not None else 0
    if not rest or division.padding is None or division.dim is None:
        return tensor
    shape = list(tensor.shape)
    shape[division.dim] = rest
    padding = torch.full(shape, division.padding, dtype=torch.float32).to(tensor.dtype)
    return _concatenated([tensor, padding], division.dim)


def _num_rows(name: str, whole: Tensor, dim: int, config: Mapping[str, Any]) -> int:
    rows = size_of(config, "vocab_size")
    if whole.shape[dim] < rows:
        raise CheckpointError(
            f"tensor {name!r} has {whole.shape[dim]} rows on all ranks; config.json says vocab_size {rows}"
        )
    return rows


def _concatenated(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return `torch.cat`, of one part that part itself; 8-bit floats go as bytes, which every device joins."""
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


def _refuse_unrepeatable(name: str, heads: int, ranks: int) -> None:
    if ranks % heads:
        raise ExportError(
            f"tensor {name!r}: {heads} heads can be neither divided over nor repeated for {ranks} ranks"
        )
