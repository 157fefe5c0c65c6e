"""ActivationStore: tensors in memory up to a limit, and on disk from there on."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor


class ActivationStore:
    """A list of tensors; what exceeds the limit goes to files in a temporary folder that goes with the store.

    Args:
        limit: Bytes that are kept in memory, at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._folder: Path | None = None
        self._items: list[Tensor | tuple[Path, torch.device]] = []
        self._bytes = 0

    def append(self, tensor: Tensor) -> None:
        """Keep a tensor."""
        if self._bytes + tensor.nbytes <= self.limit:
            self._bytes += tensor.nbytes
            self._items.append(tensor.detach())
            return
        from safetensors.torch import save_file

        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="octavo-activations-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{len(self._items)}.safetensors"
        save_file({"x": tensor.detach().contiguous().cpu()}, path)
        self._items.append((path, tensor.device))

    def __getitem__(self, index: int) -> Tensor:
        item = self._items[index]
        if isinstance(item, Tensor):
            return item
        from safetensors.torch import load_file

        path, device = item
        return load_file(path)["x"].to(device)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._items)

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the tensors that are in memory."""
        return self._bytes
