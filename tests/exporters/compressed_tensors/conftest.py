"""The library that defines the dialect, in a folder of its own: it is no dependency of Octavo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def consumers() -> Path:
    """A folder of packages with compressed-tensors: $OCTAVO_CONSUMERS, or what `make consumers` filled.

    Without it the test is skipped, or fails where OCTAVO_REQUIRE_CONSUMERS=1.
    """
    folder = Path(os.environ.get("OCTAVO_CONSUMERS", ROOT / ".consumers"))
    if not (folder / "compressed_tensors").is_dir():
        reason = f"compressed-tensors is not in {folder}; `make consumers` installs it there"
        if os.environ.get("OCTAVO_REQUIRE_CONSUMERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
