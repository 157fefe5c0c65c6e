"""Granularities: which elements of a tensor share one scale.

Every granularity turns a tensor into a *blocked view*, in which the elements that share a scale lie along
the reduced dims; all numerics are written once, on that view.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ConfigError, ShapeError

_AXIS = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor; shape [A, B] has a scale of shape []."""

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor of `shape`."""
        return ()

    def blocked(self, x: Tensor) -> Tensor:
        """Return the blocked view of `x`."""
        return x

    def reduced_dims(self, num_dims: int) -> tuple[int, ...]:
        """Return the dims of the blocked view of a tensor of `num_dims` dims that share a scale."""
        return tuple(range(num_dims))


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis`; shape [A, B] with axis 0 has scales of shape [A]."""

    axis: int = 0

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor of `shape`."""
        return (shape[self._dim(len(shape))],)

    def blocked(self, x: Tensor) -> Tensor:
        """Return the blocked view of `x`."""
        return x

    def reduced_dims(self, num_dims: int) -> tuple[int, ...]:
        """Return the dims of the blocked view that share a scale."""
        return tuple(d for d in range(num_dims) if d != self._dim(num_dims))

    def _dim(self, num_dims: int) -> int:
        if not -num_dims <= self.axis < num_dims:
            raise ShapeError(f"axis {self.axis} does not exist in a tensor of {num_dims} dims")
        return self.axis % num_dims


@dataclass(frozen=True)
class PerToken:
    """One scale for each row along the last dim; shape [A, B, C] has scales of shape [A, B]."""

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor of `shape`."""
        return tuple(shape[:-1])

    def blocked(self, x: Tensor) -> Tensor:
        """Return the blocked view of `x`."""
        return x

    def reduced_dims(self, num_dims: int) -> tuple[int, ...]:
        """Return the dims of the blocked view that share a scale."""
        return (num_dims - 1,)


@dataclass(frozen=True)
class PerBlock:
    """One scale for each block; shape [A, B] with sizes {-1: 16} has scales of shape [A, ⌈B/16⌉].

    Attributes:
        sizes: (negative axis, block length) pairs, last axis first. A dim whose length is not a multiple is
            padded with zeros, which changes no maximum; the padding is cropped after rounding.
    """

    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.sizes or any(axis >= 0 or length < 1 for axis, length in self.sizes):
            raise ConfigError(f"block sizes {dict(self.sizes)}: axes must be negative and lengths positive")
        if len(dict(self.sizes)) < len(self.sizes):
            raise ConfigError(f"block sizes {self.sizes}: an axis has two lengths")
        object.__setattr__(self, "sizes", tuple(sorted(self.sizes, reverse=True)))

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor of `shape`."""
        lengths = self.block_lengths(len(shape))
        return tuple(math.ceil(n / length) for n, length in zip(shape, lengths, strict=True))

    def blocked(self, x: Tensor) -> Tensor:
        """Return the view [n0, b0, n1, b1, …] of `x`, each dim split into blocks and padded with zeros."""
        lengths = self.block_lengths(x.dim())
        padding = [(-n) % length for n, length in zip(x.shape, lengths, strict=True)]
        if any(padding):
            x = torch.nn.functional.pad(x, [p for pad in reversed(padding) for p in (0, pad)])
        return x.reshape([part for n, b in zip(x.shape, lengths, strict=True) for part in (n // b, b)])

    def reduced_dims(self, num_dims: int) -> tuple[int, ...]:
        """Return the dims of the blocked view that share a scale."""
        return tuple(range(1, 2 * num_dims, 2))

    def block_lengths(self, num_dims: int) -> list[int]:
        """Return the length of the blocks along each dim of a tensor of `num_dims` dims."""
        lengths = [1] * num_dims
        for axis, length in self.sizes:
            if -axis > num_dims:
                raise ShapeError(f"block axis {axis} does not exist in a tensor of {num_dims} dims")
            lengths[axis] = length
        return lengths


@dataclass(frozen=True)
class Stacked:
    """Independent tensors along the first dim, each with the scales of `each`, as experts of one parameter are.

    Shape [E, A, B] with `each` per channel has scales of shape [E, A].
    """

    each: PerTensor | PerChannel | PerToken | PerBlock

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor of `shape`."""
        if not shape:
            raise ShapeError("stacked tensors have a dim that counts them, found shape ()")
        return (shape[0], *self.each.scale_shape(shape[1:]))

    def blocked(self, x: Tensor) -> Tensor:
        """Return the blocked view of `x`."""
        return self.each.blocked(x)

    def reduced_dims(self, num_dims: int) -> tuple[int, ...]:
        """Return the dims of the blocked view that share a scale."""
        if isinstance(self.each, PerBlock):
            return self.each.reduced_dims(num_dims)
        return tuple(d + 1 for d in self.each.reduced_dims(num_dims - 1))


PER_TENSOR = PerTensor()
Granularity = PerTensor | PerChannel | PerToken | PerBlock | Stacked


def keepdim_shape(granularity: Granularity, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in which scales broadcast over the blocked view of a tensor of `shape`."""
    scales = granularity.scale_shape(shape)
    if _has_blocks(granularity):
        return tuple(part for n in scales for part in (n, 1))
    reduced = granularity.reduced_dims(len(shape))
    return tuple(1 if d in reduced else n for d, n in enumerate(shape))


def unblocked(view: Tensor, granularity: Granularity, shape: Sequence[int]) -> Tensor:
    """Undo `granularity.blocked`: merge the blocks and crop the padding back to `shape`."""
    if not _has_blocks(granularity):
        return view
    merged = view.reshape([view.shape[2 * d] * view.shape[2 * d + 1] for d in range(len(shape))])
    if tuple(merged.shape) == tuple(shape):
        return merged
    return merged[tuple(slice(0, n) for n in shape)].contiguous()


def rows_per_scale(granularity: Granularity, num_dims: int) -> int | None:
    """Return how many neighbours along the first dim share their scales; None where all do.

    Args:
        granularity: That of a tensor, or of stacked ones.
        num_dims: Number of dims of the tensor.
    """
    match granularity:
        case PerBlock():
            return granularity.block_lengths(num_dims)[0]
        case Stacked():
            return 1
    return None if 0 in granularity.reduced_dims(num_dims) else 1


def _has_blocks(granularity: Granularity) -> bool:
    return isinstance(granularity.each if isinstance(granularity, Stacked) else granularity, PerBlock)


def granularity_to_json(granularity: Granularity) -> dict[str, Any]:
    """Return a JSON-ready dict that `granularity_from_json` reads back."""
    match granularity:
        case PerTensor():
            return {"kind": "tensor"}
        case PerToken():
            return {"kind": "token"}
        case PerChannel(axis=axis):
            return {"kind": "channel", "axis": axis}
        case PerBlock(sizes=sizes):
            return {"kind": "block", "sizes": {str(axis): length for axis, length in sizes}}
        case Stacked(each=each):
            return {"kind": "stacked", "each": granularity_to_json(each)}


def granularity_from_json(data: Mapping[str, Any]) -> Granularity:
    """Read what `granularity_to_json` wrote.

    Raises:
        ConfigError: the kind is unknown or a field is missing.
    """
    match data:
        case {"kind": "tensor", **rest} if not rest:
            return PER_TENSOR
        case {"kind": "token", **rest} if not rest:
            return PerToken()
        case {"kind": "channel", "axis": int(axis), **rest} if not rest:
            return PerChannel(axis)
        case {"kind": "block", "sizes": dict(sizes), **rest} if not rest and _are_sizes(sizes):
            return PerBlock(tuple((int(axis), length) for axis, length in sizes.items()))
        case {"kind": "stacked", "each": dict(each), **rest} if not rest and each.get("kind") != "stacked":
            return Stacked(granularity_from_json(each))  # type: ignore[arg-type]
    raise ConfigError(
        f"granularity {data!r} is not one of tensor, channel, token, block, stacked with their fields"
    )


def _are_sizes(sizes: Mapping[Any, Any]) -> bool:
    return all(_AXIS.fullmatch(str(axis)) and type(length) is int for axis, length in sizes.items())
