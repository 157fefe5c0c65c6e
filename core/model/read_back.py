"""Reading back what was written: shards are compared with the tensors in memory, or with their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.model.background import file_threads, flush_to_disk
from octavo.core.model.shard_file import ManifestEntry, bytes_of, open_shard

_COMPARED_BYTES = 2**18  # at once, so that what a comparison finds stays in the cache
_UNTRUSTED = "the disk or the memory of this machine cannot be trusted"


def check_shard(path: Path, tensors: Mapping[str, Tensor], threads: ThreadPoolExecutor) -> None:
    """Read every tensor of a shard as its users will, and compare it with what was written, byte for byte.

    While the tensors are in memory, this finds all that hashing the file again would, and takes less time.

    Args:
        path: The shard.
        tensors: What it holds, on the CPU and contiguous.
        threads: Those that compare.

    Raises:
        CheckpointError: the shard cannot be read, or a tensor is missing, extra, or differs; it is named.
    """
    file = open_shard(path)
    differing = sorted(set(file.keys()) ^ tensors.keys())
    if differing:
        raise CheckpointError(
            f"{path.name}: tensors {differing} are only in the file or were lost; {_UNTRUSTED}"
        )
    names = list(tensors)
    for name, is_same in zip(names, threads.map(partial(_is_same, file, tensors), names), strict=True):
        if not is_same:
            raise CheckpointError(
                f"{path.name}: tensor {name!r} does not read back as it was written; {_UNTRUSTED}"
            )


def _is_same(file: Any, tensors: Mapping[str, Tensor], name: str) -> bool:
    written, read = tensors[name], file.get_tensor(name)
    if (read.dtype, read.shape) != (written.dtype, written.shape):
        return False
    first, second = bytes_of(written), bytes_of(read)
    starts = range(0, len(first), _COMPARED_BYTES)
    return all(
        np.array_equal(first[i : i + _COMPARED_BYTES], second[i : i + _COMPARED_BYTES]) for i in starts
    )


def verify_shards(directory: Path, manifest: dict[str, ManifestEntry]) -> None:
    """Read every tensor of `manifest` back from `directory` and compare its hash, while the disk takes the shards.

    Raises:
        CheckpointError: a shard cannot be read, or a tensor is missing, extra, or differs from what was written;
            it is named.
        OSError: the disk does not take a shard.
    """
    found: set[str] = set()
    with file_threads() as threads:
        for shard in sorted({entry.shard for entry in manifest.values()}):
            file = open_shard(directory / shard)
            flushed = threads.submit(flush_to_disk, directory / shard)
            names = list(file.keys())
            found.update(names)
            for name, as_read in zip(names, threads.map(partial(_entry_in, file, shard), names), strict=True):
                if as_read != (entry := manifest.get(name)):
                    raise CheckpointError(
                        f"{shard}: tensor {name!r} reads back as {as_read}, written was {entry}; {_UNTRUSTED}"
                    )
            flushed.result()
    if found != manifest.keys():
        raise CheckpointError(f"tensors were lost on writing: {sorted(manifest.keys() - found)}")


def _entry_in(file: Any, shard: str, name: str) -> ManifestEntry:
    return ManifestEntry.of(file.get_tensor(name), shard)
