"""What all tests of adapters share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.adapters_threads import one_thread


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
