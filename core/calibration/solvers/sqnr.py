"""Signal-to-quantization-noise ratios (SQNR) of a weight, and of what it returns for its input."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def decibels(signal: float, noise: float) -> float | None:
    """Return 10·log10(signal / noise), or None where there is no noise, no signal, or one is not finite."""
    if not (0 < signal < math.inf and 0 < noise < math.inf):
        return None
    return 10 * math.log10(signal / noise)


def tensor_sqnr(exact: Tensor, rounded: Tensor) -> float | None:
    """Return the SQNR of `rounded`, which stands for `exact` (same shape), in dB; None as `decibels` says."""
    exact = exact.float()
    return decibels(_sum_of_squares(exact), _sum_of_squares(rounded.float() - exact))


def gram_sqnr(original: Tensor, new: Tensor, gram: Tensor) -> float | None:
    """Return tr(W G Wᵀ) / tr(dW G dWᵀ) in dB: the SQNR of the outputs for all tokens that `gram` sums up.

    Args:
        original: W [out, in].
        new: W + dW.
        gram: G = XᵀX [in, in].
    """
    return decibels(_energy(original.float(), gram), _energy(new.float() - original.float(), gram))


def _sum_of_squares(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


def _energy(weight: Tensor, gram: Tensor) -> float:
    return float(((weight @ gram) * weight).sum(dtype=torch.float64))
