"""Runs of rows of a packed tensor, so that work on its values needs the memory of few of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from octavo.core.formats.granularity import rows_per_scale
from octavo.core.formats.quantization import Quantized
from octavo.core.formats.spec import QuantSpec

_NUM_VALUES = 2**18  # for each thread: 1 MiB of fp32, which fits its cache


def row_pieces(values: Tensor, packed: Quantized, spec: QuantSpec) -> Iterator[tuple[Tensor, Quantized]]:
    """Yield matching runs of rows of a tensor and of what is packed of it, as views, in order.

    A run is longer than the cache where blocks of one scale are. Stacked tensors are not divided.

    Args:
        values: The tensor, of any dtype.
        packed: Codes and scales of a tensor of this shape.
        spec: Their format.
    """
    shared, rows = rows_per_scale(spec.granularity, values.dim()), len(values)
    wanted = max(1, _NUM_VALUES * torch.get_num_threads() * rows // max(1, values.numel()))
    length = wanted if shared is None else max(1, wanted // shared) * shared
    # Along the only dim, bytes hold several codes.
    if values.dim() == 1 or spec.is_stacked or length >= rows:
        yield values, packed
        return
    for start in range(0, rows, length):
        run = slice(start, min(start + length, rows))
        scale = packed.scale
        if shared is not None:
            scale = scale[start // shared : math.ceil(run.stop / shared)]
        yield values[run], Quantized(packed.payload[run], scale, packed.global_scale)
