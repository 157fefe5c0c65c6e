"""The error of stored weights: their signal-to-quantization-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.solvers.sqnr import tensor_sqnr


class WeightErrors:
    """Measures every weight that is written.

    Attributes:
        sqnr: {weight: SQNR in dB of its codes}; None where nothing was lost.
    """

    def __init__(self) -> None:
        self.sqnr: dict[str, float | None] = {}

    @torch.no_grad()
    def add(self, name: str, values: Tensor, stored: Tensor) -> None:
        """Take in the weight `name`: its values, and the values that its codes stand for (same shape)."""
        self.sqnr[name] = tensor_sqnr(values, stored)
