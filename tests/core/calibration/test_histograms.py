"""Histograms: the same counts for every order and split of the data, and none of them lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.core.calibration.histogram import Histogram, HistogramCollector
from octavo.core.formats import QuantSpec
from octavo.core.quantizers import Calibrator, TensorQuantizer

INT8 = QuantSpec("int8")
ENTROPY = Calibrator("entropy", num_bins=256)


def batch(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(-20, 20, (), generator=generator)
    return torch.randn(3, 50, generator=generator) * 10.0**exponent * (seed % 5)


def collected(batches: list[Tensor], calibrator: Calibrator = ENTROPY) -> HistogramCollector:
    collector = HistogramCollector(INT8, calibrator)
    for x in batches:
        collector.collect(TensorQuantizer(INT8), x)
    return collector


@settings(max_examples=60, deadline=None)
@given(shards=st.lists(st.lists(st.integers(0, 10_000), max_size=4), max_size=5), data=st.data())
def test_merged_shards_equal_one_pass_over_all_data(shards: list[list[int]], data: st.DataObject) -> None:
    merged = collected([])
    for index in data.draw(st.permutations(range(len(shards)))):
        merged.merge(collected([batch(seed) for seed in shards[index]]))

    everything = [batch(seed) for shard in shards for seed in shard]
    whole = collected(everything)
    if not everything:
        assert merged.state() is whole.state() is None
        return
    assert merged.histogram.exponent == whole.histogram.exponent
    assert torch.equal(merged.histogram.counts, whole.histogram.counts)  # type: ignore[arg-type]
    assert torch.equal(merged.state()["amax"], whole.state()["amax"])  # type: ignore[index]
    magnitudes = torch.cat([x.flatten() for x in everything]).abs().double()
    expected = torch.bincount((magnitudes / whole.histogram.width).long(), minlength=256)
    assert torch.equal(whole.histogram.counts, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_largest_value_lies_in_the_upper_half(dtype: torch.dtype) -> None:
    for amax in (0.3, 0.5, 1.0, 1.5, 2.0, 3.99):
        histogram = Histogram(256)
        histogram.add(torch.tensor([0.0, -amax], dtype=dtype), float(torch.tensor(amax, dtype=dtype)))

        assert histogram.counts is not None
        assert histogram.counts.nonzero().flatten().tolist()[0] == 0
        assert 128 <= int(histogram.counts.nonzero()[-1]) < 256


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, 3.4e38])
def test_extreme_values(value: float) -> None:
    for method in ("entropy", "percentile", "mse"):
        collector = collected([torch.full((10,), value)], Calibrator(method))

        assert collector.histogram.counts.sum() == 10  # type: ignore[union-attr]
        assert collector.state()["amax"] == torch.tensor(value)  # type: ignore[index]


def test_counts_stay_exact_where_float32_would_not() -> None:
    """fp32 counts stop growing at 2^24."""
    histogram = Histogram(256)
    histogram.add(torch.ones(8), 1.0)
    for _ in range(22):  # 8 · 2^22 = 2^25
        other = Histogram(256)
        other.merge(histogram)
        histogram.merge(other)
    histogram.add(torch.ones(1), 1.0)

    assert histogram.counts.sum() == 2**25 + 1  # type: ignore[union-attr]
