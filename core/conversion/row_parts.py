"""A packed matrix in parts of whole rows, so that what is computed with it does not take many times its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from octavo.core.packed import PackedTensor

_MOST_CODES = 2**20


def row_parts(packed: PackedTensor) -> list[PackedTensor]:
    """Return equal parts of about a million codes as views; fewer where rows or blocks do not divide.

    A stack is one part.
    """
    rows, num_parts = packed.shape[0], 1
    if packed.spec.is_stacked:
        return [packed]
    while math.prod(packed.shape) > num_parts * _MOST_CODES and rows % (2 * num_parts) == 0:
        if packed.row_segment(0, 2 * num_parts) is None:
            break
        num_parts *= 2
    parts = [packed.row_segment(index, num_parts) for index in range(num_parts)]
    return [part for part in parts if part is not None]


def joined_rows(whole: PackedTensor, parts: Sequence[PackedTensor]) -> PackedTensor:
    """Undo `row_parts`, for parts of `whole` that have other codes and scales now."""
    scale = parts[0].scale
    if whole.scale.dim() and whole.scale.shape[0] > 1:
        scale = torch.cat([part.scale for part in parts])
    payload = torch.cat([part.payload for part in parts])
    return replace(parts[0], payload=payload, scale=scale, shape=whole.shape)
