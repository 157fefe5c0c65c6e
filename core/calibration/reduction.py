"""Statistics of ranks that see parts of the same tensors, combined: every rank ends with those of the whole.

All functions are collective: every rank of a group calls them for the same quantizers in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.calibration.experts import EXPERT
from octavo.core.calibration.histogram import HistogramCollector
from octavo.core.errors import UnsupportedError
from octavo.core.model.rank_groups import RankGroups
from octavo.core.modules import quantized_layers
from octavo.core.plugins import plugins
from octavo.core.quantizers import TensorQuantizer

Groups = tuple[dist.ProcessGroup, ...]
_EXACT = ("max",)
_UNSEEN = -1.0  # below every magnitude


def groups_of_quantizers(model: nn.Module) -> dict[TensorQuantizer, RankGroups]:
    """Return what adapters say of the quantizers of `model`, stage by stage; of most models nothing."""
    named = plugins().rank_groups(model)
    if not named:
        return {}
    return {
        stage: named[name]
        for layer_name, layer in quantized_layers(model)
        for quantizer_name, quantizer in layer.quantizers().items()
        if (name := f"{layer_name}.{quantizer_name}") in named
        for stage in quantizer.stages()
    }


def reduce_maxima(
    collectors: Mapping[TensorQuantizer, AmaxCollector], groups: Mapping[TensorQuantizer, RankGroups]
) -> None:
    """Let collectors have seen what those of the other ranks have.

    Maxima are exact, and histograms are those of all data. What no rank has seen stays unseen; what is not finite is
    infinite on every rank, so that all of them refuse it.

    Raises:
        UnsupportedError: a quantizer has a static bias.
    """
    concerned = {quantizer: collector for quantizer, collector in collectors.items() if quantizer in groups}
    if any(quantizer.has_static_bias for quantizer in concerned):
        raise UnsupportedError(
            "a static bias cannot be calibrated by ranks that see parts of the tensor; make it dynamic "
            "({'bias': {'type': 'dynamic', …}}), or calibrate in one process"
        )
    by_groups: dict[Groups, list[_Maximum]] = {}
    for quantizer, collector in concerned.items():
        _share_among_rows(collector, groups[quantizer])
        shared = groups[quantizer].of_scales(collector.spec)
        by_groups.setdefault(shared, []).append(_Maximum(collector, "amax", quantizer))
        if groups[quantizer].all != shared:
            collector.global_amax = None if collector.amax is None else collector.amax.amax()
            by_groups.setdefault(groups[quantizer].all, []).append(
                _Maximum(collector, "global_amax", quantizer)
            )
    for shared, maxima in by_groups.items():
        _reduce(shared, maxima)
    for quantizer, collector in concerned.items():
        if isinstance(collector, HistogramCollector):
            _reduce_histogram(collector, groups[quantizer].all)


def _share_among_rows(collector: AmaxCollector, groups: RankGroups) -> None:
    """Give all rows of one role of a fused weight their largest maximum."""
    if groups.rows is None or collector.amax is None:
        return
    for role in groups.rows.rows_per_group:
        index = groups.rows.index(role).to(collector.amax.device)
        collector.amax[index] = collector.amax[index].amax()


def fill_unrouted(
    names: Mapping[str, TensorQuantizer],
    collectors: Mapping[TensorQuantizer, AmaxCollector],
    groups: Mapping[TensorQuantizer, RankGroups],
) -> None:
    """Give input quantizers of experts that no token reached the largest of all ranks' other experts.

    Experts of one rank alone are seen to by `amax_of_unrouted`, by the same rule.

    Args:
        names: The quantizers that wait for calibration, by name.
        collectors: What they have seen.
        groups: Their groups.
    """
    experts: dict[tuple[str, str, tuple[int, ...]], list[TensorQuantizer]] = {}
    for name, quantizer in names.items():
        match = EXPERT.fullmatch(name)
        if match is not None and quantizer in groups and groups[quantizer].siblings:
            shape = tuple(quantizer.state_tensors()[0].shape)
            experts.setdefault((match["experts"], match["own"], shape), []).append(quantizer)
    for quantizers in experts.values():
        maxima = [_Maximum(collectors[quantizer], "amax", quantizer) for quantizer in quantizers]
        largest = torch.stack([maximum.get() for maximum in maxima]).amax(0)
        for group in groups[quantizers[0]].siblings:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        for quantizer, maximum in zip(quantizers, maxima, strict=True):
            if collectors[quantizer].amax is None:
                maximum.set(largest.clone())


def check_ranks(model: nn.Module, methods: Iterable[str]) -> None:
    """Refuse algorithms that would choose on each rank by what that one sees.

    Raises:
        UnsupportedError: ranks see parts of the same tensors, and an algorithm is not `max`; it is named.
    """
    others = [method for method in methods if method not in _EXACT]
    if others and any(one.all for one in groups_of_quantizers(model).values()):
        raise UnsupportedError(
            f"the algorithm {others[0]!r} is not available where ranks share a model's layers or its data: each would "
            f"choose by its own part. Use {_EXACT[0]!r}, or calibrate where tensor and data parallelism are 1, and "
            "load that checkpoint"
        )


class _Maximum:
    """One tensor of maxima of a collector, of a shape that is known before anything was seen."""

    def __init__(self, collector: AmaxCollector, name: str, quantizer: TensorQuantizer) -> None:
        self._collector = collector
        self._name = name
        state = quantizer.state_tensors()[0]
        self._like = state if name == "amax" else state.new_empty(())

    def get(self) -> Tensor:
        """Return the maxima, flat."""
        found = getattr(self._collector, self._name)
        if found is None:
            return torch.full_like(self._like, _UNSEEN).flatten()
        return torch.where(found.isfinite(), found, torch.inf).flatten()

    def set(self, values: Tensor) -> None:
        """Put back what `get` returned, combined."""
        seen = bool((values >= 0).all())
        setattr(self._collector, self._name, values.reshape(self._like.shape) if seen else None)


def _reduce(groups: Groups, maxima: Sequence[_Maximum]) -> None:
    """Combine maxima over groups in turn, by one call for each group."""
    parts = [maximum.get() for maximum in maxima]
    if not groups or not parts:
        return
    together = torch.cat(parts)
    for group in groups:
        dist.all_reduce(together, op=dist.ReduceOp.MAX, group=group)
    for maximum, values in zip(maxima, torch.split(together, [len(part) for part in parts]), strict=True):
        maximum.set(values.clone())


def _reduce_histogram(collector: HistogramCollector, groups: Groups) -> None:
    """Add up the counts of all ranks, in the widest range of any."""
    if collector.amax is None or not collector.amax.isfinite().all():
        return  # on every rank, since maxima are combined already
    histogram, device = collector.histogram, collector.amax.device
    exponent = torch.tensor(histogram.exponent, device=device)
    for group in groups:
        dist.all_reduce(exponent, op=dist.ReduceOp.MAX, group=group)
    histogram.widen(int(exponent))
    counts = histogram.counts
    counts = (
        torch.zeros(histogram.num_bins, dtype=torch.int64, device=device)
        if counts is None
        else counts.to(device)
    )
    for group in groups:
        dist.all_reduce(counts, op=dist.ReduceOp.SUM, group=group)
    histogram.counts = counts
