"""Two threads, so that work is divided; skipped where nothing compiles it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octavo.kernels.cpu.kernels import CPU


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    if reason := CPU.missing():
        pytest.skip(reason)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
