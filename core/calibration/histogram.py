"""Histograms of magnitudes: counts that do not depend on the order or the split of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.core.calibration.collectors import AmaxCollector, AmaxMemo
from octavo.core.calibration.histogram_amax import amax_of
from octavo.core.formats import QuantSpec
from octavo.core.quantizers import Calibrator, TensorQuantizer

# Ranges are at least 2^this, far below any amax that quantizers tell from zero.
_SMALLEST_EXPONENT = -100


class Histogram:
    """Counts of magnitudes in equal bins that cover [0, 2^exponent).

    A larger value doubles the range until it fits, and each time pairs of neighbouring bins become one. Bin edges
    are powers of two times integers, so that the counts are those of binning all data at once, whatever its
    order, and histograms merge exactly.

    Attributes:
        num_bins: A power of two.
        exponent: Of the range.
        counts: int64 [num_bins], or None while nothing was added.
    """

    def __init__(self, num_bins: int) -> None:
        self.num_bins = num_bins
        self.exponent = _SMALLEST_EXPONENT
        self.counts: Tensor | None = None

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent) / self.num_bins

    def add(self, x: Tensor, amax: float) -> None:
        """Count the values of `x` (any shape and float dtype), of which `amax` (finite) is the largest or more."""
        self.widen(math.frexp(amax)[1] if amax > 0 else _SMALLEST_EXPONENT)
        bins = (x.detach().abs().float().flatten() * (1 / self.width)).long()
        self._add(torch.bincount(bins, minlength=self.num_bins))

    def merge(self, other: Histogram) -> None:
        """Take in the counts of a histogram with as many bins."""
        if other.counts is not None:
            self.widen(other.exponent)
            self._add(_folded(other.counts, self.exponent - other.exponent))

    def widen(self, exponent: int) -> None:
        """Make the range [0, 2^exponent), if it is smaller."""
        if exponent > self.exponent:
            if self.counts is not None:
                self.counts = _folded(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def _add(self, counts: Tensor) -> None:
        self.counts = counts if self.counts is None else self.counts + counts.to(self.counts.device)


class HistogramCollector(AmaxCollector):
    """The histogram of one quantizer's tensor, and the amax that its calibrator reads from it."""

    def __init__(self, spec: QuantSpec, calibrator: Calibrator, memo: AmaxMemo | None = None) -> None:
        super().__init__(spec, memo)
        self._calibrator = calibrator
        self.histogram = Histogram(calibrator.num_bins)

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Take `x` into account; after NaN or infinity only `amax` is kept, which tells of them."""
        super().collect(quantizer, x)
        if x.numel() > 0 and self.amax is not None and self.amax.isfinite():
            self.histogram.add(x, float(self.amax))

    def merge(self, other: AmaxCollector) -> None:
        """Take in what another collector of the same kind has seen; counts merge exactly."""
        super().merge(other)
        if isinstance(other, HistogramCollector):
            self.histogram.merge(other.histogram)

    def state(self) -> dict[str, Tensor] | None:
        """Return what `TensorQuantizer.set_state` takes, or None when nothing was seen."""
        if self.amax is None or self.histogram.counts is None:
            return super().state()
        counts, width = self.histogram.counts, self.histogram.width
        chosen = amax_of(counts.double().cpu(), width, self._spec, self._calibrator)
        return {"amax": torch.full_like(self.amax, chosen).minimum(self.amax)}


def _folded(counts: Tensor, doublings: int) -> Tensor:
    """Return the counts after the range doubled `doublings` times."""
    num_bins = counts.numel()
    merged = min(2**doublings, num_bins)  # bins that become one; they cannot be more than there are
    folded = counts.reshape(-1, merged).sum(1)
    return torch.nn.functional.pad(folded, (0, num_bins - folded.numel()))
