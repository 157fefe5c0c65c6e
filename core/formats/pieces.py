"""Pieces of tensors that fit the cache, so that work of several steps reads memory once on the CPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import Tensor

_NUM_VALUES = 2**18  # 1 MiB of fp32; with fewer, the calls cost more than the memory


def pieces(tensors: Sequence[Tensor], whole: Collection[int] = ()) -> Iterator[Sequence[Tensor]]:
    """Yield matching views of parts of tensors, one after the other; on other devices than the CPU, just `tensors`.

    Args:
        tensors: Of as many dims each; those of the first have its lengths, those of others these or 1.
        whole: Dims that are never divided.
    """
    first = tensors[0]
    dim = next((d for d, n in enumerate(first.shape) if n > 1 and d not in whole), None)
    if first.numel() <= _NUM_VALUES or first.device.type != "cpu" or dim is None:
        yield tensors
        return
    length = max(1, first.shape[dim] * _NUM_VALUES // first.numel())
    for start in range(0, first.shape[dim], length):
        count = min(length, first.shape[dim] - start)
        yield from pieces([t.narrow(dim, start, count) if t.shape[dim] > 1 else t for t in tensors], whole)
