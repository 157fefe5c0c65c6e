"""PackedChain: codes and scales whose values are rounded once more to another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.formats import PerTensor, Quantized, QuantSpec
from octavo.core.formats.row_pieces import row_pieces
from octavo.core.formats.squared_error import run_sums
from octavo.core.packed.packed_tensor import PackedTensor


@dataclass(frozen=True, eq=False)
class PackedChain:
    """A tensor of two formats in turn: INT4 codes that an engine multiplies as FP8, say.

    Attributes:
        first: Codes and scales of the first format.
        then: The second one.
        state: Its calibrated tensors, in the order of `then.state`.
    """

    first: PackedTensor
    then: QuantSpec
    state: tuple[Tensor, ...]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values in `dtype` or the original one; every rounding is in the original one."""
        values = ops.fake_quantize(self.first.dequantize(), list(self.state), self.then.key)
        return values if dtype is None else values.to(dtype)

    def squared_error(self, x: Tensor) -> Tensor:
        """Return the sums of squares of `x`, of this shape, and of the errors (`formats.squared_error.run_sums`).

        A few rows are decoded at once, unless the second format has scales for parts of the tensor, or none that were
        calibrated.
        """
        if self.then.dynamic or not isinstance(self.then.granularity, PerTensor):
            return run_sums(x, self.dequantize(torch.float32))
        first = self.first
        pieces = row_pieces(x, Quantized(first.payload, first.scale, first.global_scale), first.spec)
        runs = [
            run_sums(part, self._of(codes, part.shape).dequantize(torch.float32)) for part, codes in pieces
        ]
        return torch.cat(runs, dim=1)

    def _of(self, codes: Quantized, shape: Sequence[int]) -> PackedChain:
        """Return the same of a part of the codes."""
        part = PackedTensor(*codes, self.first.spec, tuple(shape), self.first.dtype)
        return replace(self, first=part)
