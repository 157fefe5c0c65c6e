"""Where what was made on this machine is kept for the next time: compiled kernels, what tuning found."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "OCTAVO_CACHE"


def cache_folder() -> Path:
    """Return `OCTAVO_CACHE`, or else the folder `octavo` of the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"
