"""What `tests/launched/megatron_checkpoints.py` must have found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def check_trips(result: dict[str, Any], names: Sequence[str], ranks: int) -> None:
    """Check models that were saved by one layout of `ranks`, loaded by another, saved there and loaded again."""
    assert list(result) == list(names)
    for name, found in result.items():
        assert found["tensors"] >= 20, name
        assert found["modes"] == ["quantize"], name
        assert found["back"] == [[]] * ranks, f"{name}: a tensor came back with other bytes"
        assert found["as_calibrated_there"] == [[]] * ranks, (
            f"{name}: other scales than calibrating there gives"
        )
        saved, loaded = found["losses"]
        assert loaded == pytest.approx(saved, rel=2e-6), name
