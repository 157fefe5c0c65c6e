"""What a changed weight costs at the layer's output, from the Gram matrix of the layer's input."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.formats import PerBlock, QuantSpec


def gram_error(change: Tensor, gram: Tensor) -> Tensor:
    """Return ||X·change^T||^2 of each row, fp32 [out], where `gram` is X^T·X.

    Args:
        change: fp32 [out, in]: the new weight minus the old one.
        gram: fp32 [in, in].
    """
    return ((change @ gram) * change).sum(1)


def block_length(spec: QuantSpec, num_columns: int) -> int:
    """Return how many neighbouring columns of a row share a scale; all of them where scales are no blocks."""
    if isinstance(spec.granularity, PerBlock):
        return min(dict(spec.granularity.sizes).get(-1, 1), num_columns)
    return num_columns


def diagonal_blocks(gram: Tensor, length: int) -> Tensor:
    """Return the square blocks on the diagonal, [ceil(in / length), length, length], padded with zeros."""
    padded = torch.nn.functional.pad(gram, [0, -len(gram) % length] * 2)
    count = len(padded) // length
    return padded.reshape(count, length, count, length).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
