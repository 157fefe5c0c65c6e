"""Sums of the squares of values and of their errors, in an order that every kernel keeps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

RUN = 512  # columns that are summed at once; a power of two, and RUN of squared_error.cpp


def num_runs(columns: int) -> int:
    """Return how many runs a row of so many columns has, the last one shorter."""
    return -(-columns // RUN)


def run_sums(x: Tensor, stored: Tensor) -> Tensor:
    """Return the sums of squares of each run of RUN columns.

    Differences are fp32; their squares, in float64, are exact, and `folded` adds them.

    Args:
        x: The values [..., columns], any float dtype.
        stored: What stands for them, fp32.

    Returns:
        float64 [2, ..., runs]: of the values, and of the differences.
    """
    exact = x.float()
    both = torch.stack([exact, stored - exact]).double()
    columns = both.shape[-1]
    runs = pad(both, (0, -columns % RUN)).reshape(*both.shape[:-1], num_runs(columns), RUN)
    return folded(runs.square())


def folded(x: Tensor) -> Tensor:
    """Return the sums along the last dim: zeros up to a power of two, then halves added until one number is left."""
    length = x.shape[-1]
    x = pad(x, (0, 2 ** (length - 1).bit_length() - length))
    while x.shape[-1] > 1:
        first, second = x.chunk(2, dim=-1)
        x = first + second
    return x[..., 0]
