"""What Octavo says on the terminal: short lines and a progress bar on stderr, or nothing when quiet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def say(text: str, quiet: bool) -> None:
    """Print one message to stderr, unless `quiet`."""
    if not quiet:
        sys.stderr.write(f"octavo: {text}\n")


def track(items: Iterable[T], description: str, quiet: bool) -> Iterator[T]:
    """Yield `items` under a progress bar, where stderr is a terminal and `quiet` is off."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    total = len(items) if isinstance(items, Sized) else None
    yield from rich_track(items, description, total=total, console=Console(stderr=True))
