"""The running bias of a quantizer's tensor, and the maxima of what is left without it."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.quantizers import Bias, TensorQuantizer


class BiasCollector:
    """Follows the bias of one tensor, and shows another collector what is left of it.

    As in ModelOpt 0.47, every batch counts alike, is centred by the bias of all batches up to it, and the running mean
    is rounded to the tensor's dtype each time.

    Args:
        bias: How the bias follows from a tensor.
        inner: The collector that sees each tensor without it.

    Attributes:
        value: The bias, in the tensor's dtype; None while nothing was seen.
    """

    def __init__(self, bias: Bias, inner: AmaxCollector) -> None:
        self._bias = bias
        self._inner = inner
        self._num_batches = 0
        self._range: tuple[Tensor, Tensor] | None = None
        self.value: Tensor | None = None

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Take `x` into account; an empty tensor says nothing."""
        if x.numel() == 0:
            return
        self.value = self._mean(x) if self._bias.method == "mean" else self._middle(x)
        self._num_batches += 1
        self._inner.collect(quantizer, x - self.value)

    def _mean(self, x: Tensor) -> Tensor:
        mean, seen = self._bias.of(x), self._num_batches
        if self.value is None:
            return mean
        return ((self.value.float() * seen + mean.float()) / (seen + 1)).to(mean.dtype)

    def _middle(self, x: Tensor) -> Tensor:
        lowest, highest = (limit(x, dim=self._bias.axes, keepdim=True) for limit in (torch.amin, torch.amax))
        if self._range is not None:
            lowest, highest = torch.minimum(self._range[0], lowest), torch.maximum(self._range[1], highest)
        self._range = (lowest, highest)
        return (lowest + highest) / 2
