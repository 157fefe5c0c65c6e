"""Collectors: statistics that calibration gathers from the tensors that quantizers see."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.formats import QuantSpec
from octavo.core.modules import tensor_quantizers
from octavo.core.quantizers import Collector, TensorQuantizer


class Ignore:
    """A collector that looks at nothing; while attached, its quantizer rounds nothing."""

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Look away."""


class Seen:
    """A collector that remembers which quantizers were reached."""

    def __init__(self) -> None:
        self.quantizers: set[TensorQuantizer] = set()

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Remember `quantizer`."""
        self.quantizers.add(quantizer)


class Both:
    """Two collectors on one quantizer."""

    def __init__(self, one: Collector, other: Collector) -> None:
        self._collectors = (one, other)

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Hand `x` to both."""
        for collector in self._collectors:
            collector.collect(quantizer, x)


class AmaxMemo:
    """The maxima of the last tensor, so that layers that read the same one (q, k, v) reduce it once."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, str] | None = None
        self._amax = torch.empty(0)

    def amax(self, x: Tensor, spec: QuantSpec) -> Tensor:
        """Return `ops.amax(x, spec)`."""
        if (
            x.is_inference()
        ):  # such tensors do not count their changes: nothing tells that one is still the same
            return ops.amax(x, spec)
        if self._last is not None:
            reference, version, key = self._last
            if reference() is x and version == x._version and key == spec.key:
                return self._amax
        self._amax = ops.amax(x, spec)
        self._last = (weakref.ref(x), x._version, spec.key)
        return self._amax


class AmaxCollector:
    """Running maxima of one quantizer's tensor, as its format needs them.

    Args:
        spec: The quantizer's format.
        memo: Shared with the other collectors of a run, or None.

    Attributes:
        amax: fp32, the shape of the format's scales: largest magnitude of each; None while nothing was seen.
        global_amax: fp32 []: that of the whole tensor, where other ranks have parts of it; None where `amax` says it.
    """

    def __init__(self, spec: QuantSpec, memo: AmaxMemo | None = None) -> None:
        self._names = spec.state
        per_tensor = QuantSpec(spec.element)
        self._spec = spec if "amax" in spec.state else per_tensor.stacked() if spec.is_stacked else per_tensor
        self._memo = memo
        self._largest: list[Tensor] = []  # of each batch, looked at when one was not finite
        self.amax: Tensor | None = None
        self.global_amax: Tensor | None = None

    @property
    def spec(self) -> QuantSpec:
        """The format of which `amax` has the scales: one of a whole tensor where the quantizer keeps no others."""
        return self._spec

    @classmethod
    def of(cls, spec: QuantSpec, amax: Tensor) -> AmaxCollector:
        """Return a collector that has seen `amax`."""
        collector = cls(spec)
        collector.amax = amax
        return collector

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Take `x` into account; an empty tensor says nothing."""
        if x.numel() == 0:
            return
        amax = self._memo.amax(x, self._spec) if self._memo is not None else ops.amax(x, self._spec)
        self._largest.append(amax if amax.numel() == 1 else amax.amax())
        self._update(amax)

    def bad_batch(self) -> int | None:
        """Return the first batch, counted from 0, that had NaN or infinite values, or None."""
        return next((n for n, largest in enumerate(self._largest) if not largest.isfinite().all()), None)

    def merge(self, other: AmaxCollector) -> None:
        """Take in what another collector (of another shard of the data) has seen; maxima merge exactly."""
        if other.amax is not None:
            self._update(other.amax)

    def state(self) -> dict[str, Tensor] | None:
        """Return what `TensorQuantizer.set_state` takes, or None when nothing was seen."""
        if self.amax is None:
            return None
        values = {"amax": self.amax, "global_amax": self.global_amax}
        if self.global_amax is None:
            rows = self.amax.reshape(len(self.amax), -1) if self._spec.is_stacked else self.amax
            values["global_amax"] = rows.amax(-1) if self._spec.is_stacked else rows.amax()
        return {name: value for name in self._names if (value := values[name]) is not None}

    def _update(self, amax: Tensor) -> None:
        self.amax = amax.clone() if self.amax is None else torch.maximum(self.amax, amax)


@contextmanager
def collecting(model: nn.Module, collectors: Mapping[TensorQuantizer, Collector]) -> Iterator[None]:
    """Attach collectors to quantizers for the time of a context, in which no quantizer of `model` rounds."""
    ignore = Ignore()
    with attached({q: collectors.get(q, ignore) for _, q in tensor_quantizers(model)}):
        yield


@contextmanager
def attached(collectors: Mapping[TensorQuantizer, Collector]) -> Iterator[None]:
    """Attach collectors to these quantizers alone, which do not round then; others do."""
    try:
        for quantizer, collector in collectors.items():
            quantizer.collector = collector
        yield
    finally:
        for quantizer in collectors:
            quantizer.collector = None
