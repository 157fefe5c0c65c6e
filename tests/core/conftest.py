"""What tests of the core share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def nearest(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make the algorithm `nearest` known to configs; what it has seen, nothing so far."""
    from helpers.calibration_algorithms import Nearest
    from octavo.core.calibration.algorithms import ALGORITHMS

    monkeypatch.setitem(ALGORITHMS, "nearest", "helpers.calibration_algorithms:Nearest")
    Nearest.seen.clear()
    return Nearest.seen
