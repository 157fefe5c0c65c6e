"""What calibrators read from a histogram, against direct computations and ModelOpt's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.core.calibration.histogram import HistogramCollector
from octavo.core.calibration.histogram_amax import entropy_bins, percentile_bins
from octavo.core.formats import QuantSpec, fake_quantize
from octavo.core.quantizers import Calibrator, TensorQuantizer


def values(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, generator=generator)
    if kind == "outliers":
        x[:20] *= 30
    elif kind == "heavy tails":
        x *= torch.randn(20_000, generator=generator).abs() ** 2
    elif kind == "relu":
        x = x.relu()
    elif kind == "uniform":
        x = torch.rand(20_000, generator=generator)
    return x


KINDS = ("normal", "outliers", "heavy tails", "relu", "uniform")


def collected(kind: str, spec: QuantSpec, calibrator: Calibrator) -> HistogramCollector:
    collector = HistogramCollector(spec, calibrator)
    collector.collect(TensorQuantizer(spec), values(kind))
    return collector


def divergence(counts: np.ndarray, kept: int, num_levels: int) -> float:
    """KL(P ‖ Q) of one clipped range, bin by bin, as Migacz's slides and ModelOpt's calibrator define both."""
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    level = np.arange(kept) * num_levels // kept
    occupied = counts[:kept] > 0
    sums = np.bincount(level, weights=counts[:kept], minlength=num_levels)
    q = (sums / np.maximum(np.bincount(level, weights=occupied, minlength=num_levels), 1))[level] * occupied
    if (p[~occupied] > 0).any() or q[occupied].sum() == 0:
        return math.inf
    p, q = p[occupied] / p.sum(), q[occupied] / q.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("element", ["int8", "int4", "uint8"])
def test_entropy_takes_the_range_with_the_least_divergence(kind: str, element: str) -> None:
    spec, levels = QuantSpec(element), {"int8": 128, "int4": 8, "uint8": 256}[element]
    histogram = collected(kind, spec, Calibrator("entropy", num_bins=1024)).histogram
    assert histogram.counts is not None
    counts = histogram.counts[: int(histogram.counts.nonzero()[-1]) + 1].double()

    found = entropy_bins(counts, levels)

    plain = counts.numpy().copy()
    plain[0] = plain[1]
    all_divergences = {
        kept: divergence(plain, kept, levels) for kept in range(max(128, levels), len(plain) + 1)
    }
    assert all_divergences[found] <= min(all_divergences.values()) * (1 + 1e-9) + 1e-12
    assert kind == "uniform" or found < len(plain)


def test_entropy_equals_the_peers_on_its_own_counts() -> None:
    """ModelOpt 0.47's `_compute_amax_entropy` on these counts, 8 bits, edges at 0, 1, 2, …."""
    i = torch.arange(600.0)
    bell = (1e6 * torch.exp(-((i / 90) ** 2))).floor().double()
    tail = (1e6 / (1 + i) ** 2).floor().double()
    assert (entropy_bins(bell[bell > 0], 128), entropy_bins(tail[tail > 0], 128)) == (299, 192)


@pytest.mark.parametrize("percentile", [50, 99.0, 99.99, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_percentile_clips_no_more_than_it_says(kind: str, percentile: float) -> None:
    collector = collected(kind, QuantSpec("int8"), Calibrator("percentile", percentile=percentile))
    amax = collector.state()["amax"]  # type: ignore[index]
    magnitudes = values(kind).abs()

    assert (magnitudes <= amax).double().mean() >= percentile / 100
    narrower = amax - 2 * collector.histogram.width
    assert (magnitudes <= narrower).double().mean() < percentile / 100
    if percentile == 100:
        assert amax == magnitudes.max()


def test_percentile_of_few_bins() -> None:
    counts = torch.tensor([90.0, 9.0, 1.0], dtype=torch.float64)
    assert [percentile_bins(counts, p) for p in (50, 90, 90.1, 99, 99.5, 100)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("element", ["int8", "int4", "uint8", "e4m3"])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_close_to_the_best_of_the_data_itself(kind: str, element: str) -> None:
    spec, x = QuantSpec(element), values(kind).abs()
    amax = collected(kind, spec, Calibrator("mse")).state()["amax"]  # type: ignore[index]

    def error(tried: Tensor) -> float:
        return float((fake_quantize(x, [tried], spec) - x).double().square().mean())

    best = min(error(x.max() * multiple / 200) for multiple in range(7, 201))
    assert error(amax) <= 1.03 * best
    if element == "int4" and kind != "uniform":
        assert error(amax) < 0.8 * error(x.max())
