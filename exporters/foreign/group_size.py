"""The group size in metadata of INT checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError

_WHOLE_ROW = -1


def group_size_of(config: Mapping[str, Any], file: Path) -> int | None:
    """Return how many inputs share a scale; None for all of an output channel.

    Raises:
        CheckpointError: metadata says neither a positive number nor −1.
    """
    found = config.get("group_size", config.get("q_group_size"))
    if type(found) is not int or (found < 1 and found != _WHOLE_ROW):
        raise CheckpointError(
            f"{file}: group_size must be a positive number or {_WHOLE_ROW}, found {found!r}"
        )
    return None if found == _WHOLE_ROW else found
