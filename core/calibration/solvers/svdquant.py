"""Low-rank corrections beside a rounded weight: W ≈ Q(W − B·A) + B·A (SVDQuant, arXiv:2411.05007)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """Factors whose product is added to a layer's weight; the layer computes Q(x) · weightᵀ + (x · downᵀ) · upᵀ.

    Attributes:
        down: [rank, in], the first factor that the input meets (ModelOpt's `svdquant_lora_a`).
        up: [out, rank] (`svdquant_lora_b`).
    """

    down: Tensor
    up: Tensor


def low_rank(weight: Tensor, rank: int = 32) -> LowRank:
    """Return the best approximation of `weight` [out, in] by `rank`, as ModelOpt 0.47, in fp32 at least.

    The singular vectors of the shorter side are the eigenvectors of W·Wᵀ or WᵀW, at a part of an SVD's cost; the others
    follow from them. The singular values go to `up`. Both factors are rounded to the weight's dtype. Where the weight
    has fewer singular values than `rank`, rows and columns of zeros fill the factors.
    """
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if exact.shape[0] <= exact.shape[1]:
        left = _loudest_directions(exact @ exact.T, rank)
        down = left.T @ exact
        values = torch.linalg.vector_norm(down, dim=1)
        up = left * values
        down = down / values.clamp_min(torch.finfo(values.dtype).tiny)[:, None]
    else:
        right = _loudest_directions(exact.T @ exact, rank)
        up, down = exact @ right, right.T
    return _padded(up, down, rank, weight.dtype)


def _loudest_directions(square: Tensor, rank: int) -> Tensor:
    """Return the eigenvectors [n, up to rank] of the largest eigenvalues of `square` [n, n], in descending order."""
    vectors: Tensor = torch.linalg.eigh(square).eigenvectors
    return vectors[:, -rank:].flip(1)


def correction(error: Tensor, gram: Tensor, rank: int = 32, damping: float = 1e-6) -> LowRank:
    """Return the factors of `rank` that correct most of the output error ‖X · errorᵀ‖² (arXiv:2410.06040).

    With the Cholesky factor L of XᵀX, that error is ‖error · L‖²: the SVD of error · L is cut off, and L is divided
    out of its right factor.

    Args:
        error: [out, in], the weight minus the rounded weight.
        gram: fp32 [in, in], XᵀX.
        rank: Columns of `up`.
        damping: Part of the mean diagonal of `gram` that is added to its diagonal.
    """
    gram = gram.double()
    ridge = gram.diagonal().mean() * damping + torch.finfo(torch.float64).tiny
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    left, values, right = torch.linalg.svd(error.double() @ factor, full_matrices=False)
    down = torch.linalg.solve_triangular(factor, right[:rank], upper=False, left=False)
    return _padded(left[:, :rank] * values[:rank], down, rank, error.dtype)


def _padded(up: Tensor, down: Tensor, rank: int, dtype: torch.dtype) -> LowRank:
    missing = rank - up.shape[1]
    up = torch.nn.functional.pad(up, (0, missing))
    down = torch.nn.functional.pad(down, (0, 0, 0, missing))
    return LowRank(down.to(dtype), up.to(dtype))
