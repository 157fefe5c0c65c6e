"""What a block returned for the calibration data: on disk for a run that is resumed, in memory as far as it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.streaming.spool import Spool, SpooledTensor, read_spooled


class SavedActivations(ActivationStore):
    """Tensors that are all in a file; those within the limit are in memory, too.

    Args:
        path: The file.
        limit: Bytes that are kept in memory, at most.
    """

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(limit)
        self.path = path
        self._spool: Spool | None = None
        self._saved: list[SpooledTensor] = []
        self._cached: list[Tensor | None] = []

    def append(self, tensor: Tensor) -> None:
        """Keep a tensor."""
        if self._spool is None:
            self._spool = Spool(self.path)
        tensor = tensor.detach()
        self._saved.append(self._spool.add(str(len(self._saved)), tensor))
        fits = self._bytes + tensor.nbytes <= self.limit
        self._bytes += tensor.nbytes if fits else 0
        self._cached.append(tensor if fits else None)

    def finish(self) -> list[dict[str, Any]]:
        """Return where they are, JSON-ready, when the disk has them."""
        if self._spool is not None:
            self._spool.finish()
        return [saved.to_json() for saved in self._saved]

    @classmethod
    def opened(cls, path: Path, saved: list[dict[str, Any]], limit: int) -> SavedActivations:
        """Return what `finish` returned of a run before."""
        found = cls(path, limit)
        found._saved = [SpooledTensor.from_json(entry) for entry in saved]
        found._cached = [None] * len(saved)
        return found

    def __getitem__(self, index: int) -> Tensor:
        cached = self._cached[index]
        return read_spooled(self.path, self._saved[index]) if cached is None else cached

    def __len__(self) -> int:
        return len(self._saved)
