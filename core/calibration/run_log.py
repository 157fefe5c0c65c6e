"""RunLog: what a calibration notes beside what it does to weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class RunLog:
    """What happened, JSON-ready.

    Attributes:
        tokens_per_expert: {name of a layer of experts: how many tokens each was chosen for}.
        warnings: What a user should know.
        seconds: {"data", or an algorithm: wall time it took}.
    """

    tokens_per_expert: dict[str, list[int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Add the time of a context to that of `what`."""
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start
