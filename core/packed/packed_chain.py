"""PackedChain: codes and scales whose values are rounded once more to another format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.formats import QuantSpec
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
        """Return the sums of squares of `x`, of this shape, and of the errors (`formats.squared_error.run_sums`)."""
        return run_sums(x, self.dequantize(torch.float32))
