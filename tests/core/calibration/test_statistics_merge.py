"""Statistics of shards of the data, merged, equal those of one pass over all of it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.core.calibration.collectors import AmaxCollector, AmaxMemo
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec
from octavo.core.quantizers import TensorQuantizer

NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
SPECS = (
    QuantSpec("e4m3", PerTensor()),
    QuantSpec("int8", PerChannel(-1)),
    NVFP4,
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0),
)
WIDTH = 32


def batch(seed: int, num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-3, 4, (), generator=generator)
    return torch.randn(num_rows, WIDTH, generator=generator) * scale


def collected(spec: QuantSpec, batches: list[Tensor]) -> AmaxCollector:
    quantizer = TensorQuantizer(spec, (1, WIDTH))
    collector = AmaxCollector(spec, AmaxMemo())
    for x in batches:
        collector.collect(quantizer, x)
    return collector


def assert_same(found: AmaxCollector, expected: AmaxCollector) -> None:
    left, right = found.state(), expected.state()
    if left is None or right is None:
        assert left is right
        return
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    shards=st.lists(st.lists(st.integers(0, 10_000), max_size=4), min_size=1, max_size=5),
    data=st.data(),
)
def test_merged_shards_equal_one_pass(spec: QuantSpec, shards: list[list[int]], data: st.DataObject) -> None:
    # Per-block statistics of an activation need a fixed shape, so every batch then has one row.
    num_rows = 1 if "amax" in spec.state and isinstance(spec.granularity, PerBlock) else 3
    batches = [[batch(seed, num_rows) for seed in shard] for shard in shards]
    order = data.draw(st.permutations(range(len(shards))))

    merged = AmaxCollector(spec)
    for index in order:
        merged.merge(collected(spec, batches[index]))

    assert_same(merged, collected(spec, [x for shard in batches for x in shard]))


def test_merging_changes_neither_the_other_collector_nor_the_data() -> None:
    spec, small, large = SPECS[1], batch(0, 3) * 1e-3, batch(1, 3) * 1e3
    first, second = collected(spec, [small]), collected(spec, [large])
    before = second.amax.clone()  # type: ignore[union-attr]

    first.merge(second)
    first.merge(collected(spec, [large * 2]))

    assert torch.equal(second.amax, before)  # type: ignore[arg-type]
    assert_same(first, collected(spec, [small, large, large * 2]))


def test_nan_in_any_shard_survives_the_merge() -> None:
    poisoned = batch(0, 3)
    poisoned[0, 0] = torch.nan
    merged = collected(SPECS[0], [batch(1, 3)])

    merged.merge(collected(SPECS[0], [poisoned]))
    merged.merge(collected(SPECS[0], [batch(2, 3)]))

    assert merged.amax is not None
    assert merged.amax.isnan()


def test_empty_tensors_say_nothing() -> None:
    assert collected(SPECS[0], [torch.empty(0, WIDTH)]).state() is None
    assert_same(collected(SPECS[1], [torch.empty(0, WIDTH), batch(0, 3)]), collected(SPECS[1], [batch(0, 3)]))
