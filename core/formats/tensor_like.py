"""What checks look at: a tensor, or what describes one."""

from __future__ import annotations

from typing import Protocol

import torch


class TensorLike(Protocol):
    """Shape, dtype and device of a tensor, which need not be there."""

    @property
    def shape(self) -> torch.Size:
        """Its shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""

    @property
    def device(self) -> torch.device:
        """Its device."""
