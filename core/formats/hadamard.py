"""The normalized Hadamard transform: a rotation that spreads outliers over the channels of a head."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.errors import ShapeError


def hadamard_block(length: int, block: int | None = None) -> int:
    """Return the length of the blocks in which a last dim of `length` is transformed.

    Args:
        length: Length of the dim.
        block: The length asked for; None takes the largest power of two that divides `length`.

    Raises:
        ShapeError: no power of two above 1 divides `length`, or `block` is none that does.
    """
    largest = length & -length
    if block is None:
        if largest < 2:
            raise ShapeError(f"a Hadamard transform needs a dim of even length, found {length}")
        return largest
    if block < 2 or block.bit_count() != 1 or length % block:
        raise ShapeError(
            f"a Hadamard transform in blocks of {block} needs a power of two that divides the last dim, {length}; the "
            f"largest is {largest}"
        )
    return block


def hadamard_transform(x: Tensor, block: int | None = None) -> Tensor:
    """Return `x` with each block of its last dim multiplied by the normalized Hadamard matrix.

    The matrix is Sylvester's, H[i, j] = (-1)^popcount(i & j) / sqrt(n): symmetric and its own inverse.

    Args:
        x: Any float dtype, [..., length]. Sums are fp32 (float64 for float64), rounded once to the dtype of `x`.
        block: As in `hadamard_block`.

    Returns:
        A tensor of the shape and dtype of `x`.

    Raises:
        ShapeError: as in `hadamard_block`.
    """
    n = hadamard_block(x.shape[-1], block)
    sums = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, n)
    half = 1
    while half < n:
        pairs = sums.reshape(-1, n // (2 * half), 2, half)
        first, second = pairs.unbind(2)
        sums = torch.stack((first + second, first - second), 2)
        half *= 2
    return sums.reshape(x.shape).mul(n**-0.5).to(x.dtype)
