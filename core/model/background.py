"""Threads that hash and flush files beside other work: both leave Python's lock alone."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_MOST_HASHES = 8  # each reads 1 GB/s or more, which is about what a disk takes


def file_threads() -> ThreadPoolExecutor:
    """Return threads, started when there is work: for a hash on each core, and a flush beside them."""
    return ThreadPoolExecutor(min(_MOST_HASHES, os.cpu_count() or 1) + 1, thread_name_prefix="octavo-files")


def flush_to_disk(path: Path) -> None:
    """Return when the disk has all of a file, or a folder's list of names.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
