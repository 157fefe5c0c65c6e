"""The error of stored weights: their signal-to-quantization-noise ratio."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class WeightErrors:
    """Adds up signal and noise of every weight that is written, part by part."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    @torch.no_grad()
    def add(self, name: str, values: Tensor, stored: Tensor) -> None:
        """Take in a part of the weight `name`: its values, and the values that its codes stand for (same shape)."""
        signal, noise = self._sums.get(name, (0.0, 0.0))
        exact = values.float()
        signal += float(exact.square().sum(dtype=torch.float64))
        noise += float((stored.float() - exact).square_().sum(dtype=torch.float64))
        self._sums[name] = (signal, noise)

    def sqnr(self) -> dict[str, float | None]:
        """Return {weight: SQNR in dB}; None where nothing was lost."""
        return {name: decibels(signal, noise) for name, (signal, noise) in self._sums.items()}


def decibels(signal: float, noise: float) -> float | None:
    """Return 10·log10(signal / noise), or None without noise or without signal."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
