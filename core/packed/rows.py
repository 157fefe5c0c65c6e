"""Rows of packed tensors: some of one, or those of several that become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.core.errors import ShapeError
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor

AnyTensor = Tensor | PackedTensor | PackedChain


def take_rows(tensor: AnyTensor, index: Tensor) -> AnyTensor:
    """Return the rows `index` (int64 [n]) of a weight [out, in] or a bias [out], plain or packed.

    Raises:
        ShapeError: a scale stands for several rows, and not for all.
    """
    if isinstance(tensor, Tensor):
        return tensor[index]
    if isinstance(tensor, PackedChain):
        return replace(tensor, first=_take(tensor.first, index))
    return _take(tensor, index)


def join_rows(tensors: Sequence[AnyTensor]) -> AnyTensor:
    """Return tensors of equal rows as one, their rows one after the other.

    Packed ones have one format, and what they have once (scales of whole tensors, a second format) is the same.

    Raises:
        ShapeError: kinds, formats or such scales differ.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first
    if any(type(tensor) is not type(first) for tensor in tensors):
        raise ShapeError("rows of packed and plain tensors cannot be joined")
    if isinstance(first, PackedTensor):
        return _join([tensor for tensor in tensors if isinstance(tensor, PackedTensor)])
    if isinstance(first, PackedChain):
        return _join_chains([tensor for tensor in tensors if isinstance(tensor, PackedChain)])
    return torch.cat([tensor for tensor in tensors if isinstance(tensor, Tensor)])


def _take(packed: PackedTensor, index: Tensor) -> PackedTensor:
    _check_rows(packed)
    scale = _bytes(packed.scale)[index].view(packed.scale.dtype) if packed.scale.dim() else packed.scale
    return replace(packed, payload=packed.payload[index], scale=scale, shape=(len(index), *packed.shape[1:]))


def _join(tensors: Sequence[PackedTensor]) -> PackedTensor:
    first = tensors[0]
    for tensor in tensors:
        _check_rows(tensor)
        _check_same(f"packed as {first.spec}", (first.spec, first.dtype), (tensor.spec, tensor.dtype))
        _check_equal(first.global_scale, tensor.global_scale, first)
        if not first.scale.dim():
            _check_equal(first.scale, tensor.scale, first)
    scale = first.scale
    if scale.dim():
        scale = torch.cat([_bytes(tensor.scale) for tensor in tensors]).view(scale.dtype)
    return replace(
        first,
        payload=torch.cat([tensor.payload for tensor in tensors]),
        scale=scale,
        shape=(sum(tensor.shape[0] for tensor in tensors), *first.shape[1:]),
    )


def _join_chains(chains: Sequence[PackedChain]) -> PackedChain:
    first = chains[0]
    for chain in chains:
        _check_same("rounded once more", first.then, chain.then)
        for ours, theirs in zip(first.state, chain.state, strict=True):
            _check_equal(ours, theirs, first.first)
    return replace(first, first=_join([chain.first for chain in chains]))


def _check_rows(packed: PackedTensor) -> None:
    if packed.scale.dim() and packed.scale.shape[0] != packed.shape[0]:
        raise ShapeError(
            f"rows of a tensor {packed.shape} packed as {packed.spec} cannot be moved: "
            f"{packed.scale.shape[0]} rows of scales stand for {packed.shape[0]} rows"
        )


def _check_same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise ShapeError(f"rows of tensors that are {what} cannot be joined: found {ours} and {theirs}")


def _check_equal(ours: Tensor | None, theirs: Tensor | None, packed: PackedTensor) -> None:
    if ours is not None and theirs is not None and not torch.equal(ours, theirs):
        raise ShapeError(
            f"tensors packed as {packed.spec} cannot be joined: each has a scale of its own, {ours.item():.6g} and "
            f"{theirs.item():.6g}, and one tensor has one; finalize the model for the dialect first"
        )


def _bytes(scale: Tensor) -> Tensor:
    """Return 8-bit scales as bytes, which every device can index and join."""
    return scale.view(torch.uint8) if scale.element_size() == 1 else scale
