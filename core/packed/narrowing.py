"""A part of a packed tensor along one dim, as views of its codes and scales, where no byte and no block is cut."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from octavo.core.errors import ShapeError
from octavo.core.formats import Granularity, PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, Stacked
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor

ScaleDim = tuple[int, int]
"""A dim of scales, and how many elements of the tensor's dim share each of them."""


def narrow(
    packed: PackedTensor | PackedChain, dim: int, start: int, length: int
) -> PackedTensor | PackedChain:
    """Return elements [start, start + length) along `dim` of a packed tensor, sharing memory with it.

    Scales of the whole tensor belong to every part.

    Args:
        packed: A tensor of any shape.
        dim: One of its dims, from 0.
        start: First element.
        length: Number of elements; `start` + `length` is at most the tensor's.

    Raises:
        ShapeError: a byte of codes or a block with one scale would be cut.
    """
    if isinstance(packed, PackedChain):
        first, spec = packed.first, packed.then
        parts = zip(spec.state, packed.state, strict=True)
        state = tuple(_state_part(part, name, spec, first.shape, dim, start, length) for name, part in parts)
        return replace(packed, first=_narrow(first, dim, start, length), state=state)
    return _narrow(packed, dim, start, length)


def scale_dim(granularity: Granularity, num_dims: int, dim: int) -> ScaleDim | None:
    """Return the dim of the scales along which scales differ where elements of `dim` do; None where they do not."""
    match granularity:
        case PerTensor():
            return None
        case PerChannel(axis=axis):
            return (0, 1) if axis % num_dims == dim else None
        case PerToken():
            return (dim, 1) if dim < num_dims - 1 else None
        case PerBlock(sizes=sizes):
            return dim, dict(sizes).get(dim - num_dims, 1)
        case Stacked() if dim == 0:
            return 0, 1
        case Stacked(each=each):
            inner = scale_dim(each, num_dims - 1, dim - 1)
            return None if inner is None else (inner[0] + 1, inner[1])


def _narrow(packed: PackedTensor, dim: int, start: int, length: int) -> PackedTensor:
    shape = (*packed.shape[:dim], length, *packed.shape[dim + 1 :])
    where = f"elements [{start}, {start + length}) of dim {dim} of a tensor {packed.shape} packed as {packed.spec}"
    bits = packed.spec.element_type.bits if dim == len(packed.shape) - 1 else 8
    first, last = _bounds(packed.shape[dim], start, length, bits, 8, f"{where}: a byte of codes")
    spec, global_scale = packed.spec, packed.global_scale
    if global_scale is not None and spec.is_stacked and dim == 0:
        global_scale = global_scale.narrow(0, start, length)
    return replace(
        packed,
        payload=packed.payload.narrow(dim, first, last - first),
        scale=_scale_part(packed.scale, spec.granularity, packed.shape, dim, start, length, where),
        global_scale=global_scale,
        shape=shape,
    )


def _state_part(
    part: Tensor, name: str, spec: QuantSpec, shape: tuple[int, ...], dim: int, start: int, length: int
) -> Tensor:
    if name == "amax":
        where = f"elements [{start}, {start + length}) of dim {dim} of a tensor {shape} rounded to {spec}"
        return _scale_part(part, spec.granularity, shape, dim, start, length, where)
    return part.narrow(0, start, length) if spec.is_stacked and dim == 0 else part


def _scale_part(
    scale: Tensor,
    granularity: Granularity,
    shape: tuple[int, ...],
    dim: int,
    start: int,
    length: int,
    where: str,
) -> Tensor:
    found = scale_dim(granularity, len(shape), dim)
    if found is None:
        return scale
    along, shared = found
    first, last = _bounds(
        shape[dim], start, length, 1, shared, f"{where}: a block of {shared} with one scale"
    )
    return scale.narrow(along, first, last - first)


def _bounds(whole: int, start: int, length: int, size: int, unit: int, what: str) -> tuple[int, int]:
    """Return [first, last) in units of `unit`, of elements of `size`; the whole's last unit need not be full."""
    last = start + length
    if start * size % unit or (last != whole and last * size % unit):
        raise ShapeError(f"{what} would be cut; cut at other places, or dequantize first (octavo.decompress)")
    return start * size // unit, -(-last * size // unit)
