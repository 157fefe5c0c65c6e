"""What a run costs: time and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Yield a dict that holds `seconds` (wall), `cpu_seconds` and `peak_bytes` when the context ends.

    `peak_bytes` is the most memory that the process has had so far; on a GPU, what torch allocated there.
    """
    cost: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.update(
        seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu, peak_bytes=_peak_bytes()
    )


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
