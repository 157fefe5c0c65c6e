"""Runs of rows of a packed tensor, so that work on its values needs the memory of few of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.formats.granularity import rows_per_scale
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor

_NUM_VALUES = 2**18  # for each thread: 1 MiB of fp32, which fits its cache


def row_pieces(
    values: Tensor, packed: PackedTensor | PackedChain
) -> Iterator[tuple[Tensor, PackedTensor | PackedChain]]:
    """Yield matching runs of rows of a tensor and of what is packed of it, as views, in order.

    A run is longer than the cache where blocks of one scale are, and whole where a second format has scales for
    parts of the tensor or none that were calibrated.

    Args:
        values: The tensor, of any dtype.
        packed: Codes and scales of a tensor of this shape.
    """
    if isinstance(packed, PackedTensor):
        yield from _pieces(values, packed)
    elif packed.then.dynamic or not isinstance(packed.then.granularity, PerTensor):
        yield values, packed
    else:
        for part, first in _pieces(values, packed.first):
            yield part, replace(packed, first=first)


def _pieces(values: Tensor, packed: PackedTensor) -> Iterator[tuple[Tensor, PackedTensor]]:
    if packed.spec.is_stacked:
        spec = packed.spec.unstacked()
        for index in range(packed.shape[0]):
            yield from _pieces(values[index], _each(packed, index, spec))
        return
    shared, rows = rows_per_scale(packed.spec.granularity, len(packed.shape)), packed.shape[0]
    wanted = max(1, _NUM_VALUES * torch.get_num_threads() * rows // max(1, values.numel()))
    length = wanted if shared is None else max(1, wanted // shared) * shared
    if len(packed.shape) == 1 or length >= rows:  # along the only dim, bytes hold several codes
        yield values, packed
        return
    for start in range(0, rows, length):
        run = slice(start, min(start + length, rows))
        yield values[run], _rows(packed, run, shared)


def _each(packed: PackedTensor, index: int, spec: QuantSpec) -> PackedTensor:
    global_scale = None if packed.global_scale is None else packed.global_scale[index]
    parts = (packed.payload[index], packed.scale[index], global_scale)
    return PackedTensor(*parts, spec, packed.shape[1:], packed.dtype)


def _rows(packed: PackedTensor, run: slice, shared: int | None) -> PackedTensor:
    shape = (run.stop - run.start, *packed.shape[1:])
    scale = packed.scale
    if shared is not None:
        scale = scale[run.start // shared : math.ceil(run.stop / shared)]
    return replace(packed, payload=packed.payload[run], scale=scale, shape=shape)
