"""Rotation: the Hadamard transform of a tensor before it is rounded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from octavo.core.formats.hadamard import hadamard_transform


@dataclass(frozen=True)
class Rotation:
    """What happens to a tensor before it is rounded, and perhaps back after: QuaRot (arXiv 2404.00456).

    Queries and keys that are rotated alike have the products that they had, so that nothing need rotate them back.

    Attributes:
        block_size: Length of the blocks of the last dim, a power of two; None is the largest that divides it.
        back: Rotate back what was rounded.
    """

    block_size: int | None = None
    back: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Return `x` rotated; a second time gives `x` back, but for rounding to its dtype.

        Raises:
            ShapeError: the last dim does not divide into such blocks.
        """
        return hadamard_transform(x, self.block_size)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict of the fields."""
        return asdict(self)

    def __str__(self) -> str:
        """Return `rotated`, or `rotated and back`, with the block length where one was asked for."""
        block = "" if self.block_size is None else f" in blocks of {self.block_size}"
        return f"rotated{block}{' and back' if self.back else ''}"
