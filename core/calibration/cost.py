"""What a run costs: time and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Yield a dict that holds these when the context ends.

    `seconds` (wall), `cpu_seconds` (of all threads), `peak_bytes` (the most memory that the process has held so far;
    not on Windows), and where torch has used a GPU `peak_gpu_bytes` (the most that it allocated on the current one).
    """
    cost: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.update(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu, **_peaks())


def _peaks() -> dict[str, float]:
    peaks: dict[str, float] = {}
    if sys.platform != "win32":
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        peaks["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peaks
