"""What tests of conversion share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from helpers.adapters_threads import one_thread
from helpers.conversions import HELD_BY_BOTH, Unified, exported


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def unified(tmp_path_factory: pytest.TempPathFactory) -> Unified:
    """Checkpoints of `HELD_BY_BOTH` in ModelOpt's dialect, fp32; not to be changed."""

    @lru_cache
    def checkpoint(case: str) -> Path:
        return exported(HELD_BY_BOTH[case], tmp_path_factory.mktemp("conversion") / "unified")

    return checkpoint
