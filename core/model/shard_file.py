"""One safetensors file: opened with its errors named, and what is noted of a tensor in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.core.errors import CheckpointError


@dataclass(frozen=True)
class ManifestEntry:
    """One written tensor: the shard that holds it, its dtype and shape, and the SHA-256 of its bytes."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, tensor: Tensor, shard: str) -> ManifestEntry:
        """Describe a contiguous CPU tensor."""
        digest = hashlib.sha256(bytes_of(tensor).data).hexdigest()
        return cls(shard, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest)


def bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a contiguous CPU tensor, as a view."""
    found: NDArray[np.uint8] = tensor.flatten().view(torch.uint8).numpy()
    return found


def open_shard(path: Path) -> Any:
    """Open a safetensors file (`safetensors.safe_open`), whose tensors are read when asked for.

    Raises:
        CheckpointError: the file cannot be read; it is named.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); the file is missing, cut short or damaged"
        ) from error
