"""The error of stored weights: their signal-to-quantization-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.solvers.sqnr import decibels
from octavo.core.formats.squared_error import folded
from octavo.core.packed import PackedChain, PackedTensor


class WeightErrors:
    """Measures every weight that is written.

    Attributes:
        sqnr: {weight: SQNR in dB of its codes}; None where nothing was lost.
    """

    def __init__(self) -> None:
        self.sqnr: dict[str, float | None] = {}

    @torch.no_grad()
    def add(self, name: str, values: Tensor, stored: PackedTensor | PackedChain) -> None:
        """Take in the weight `name`: its values, and the codes that stand for them."""
        signal, noise = folded(stored.squared_error(values).flatten(1)).tolist()
        self.sqnr[name] = decibels(signal, noise)
