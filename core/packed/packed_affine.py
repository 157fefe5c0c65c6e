"""PackedAffine: integer codes with a zero point for each block, as asymmetric checkpoints hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.formats.granularity import keepdim_shape, unblocked
from octavo.core.formats.packing import unpack
from octavo.core.formats.rounding import decode
from octavo.core.packed.packed_tensor import PackedTensor


@dataclass(frozen=True, eq=False)
class PackedAffine:
    """A tensor of unsigned codes: ``value = (code − zero point) · scale``.

    Octavo calibrates no such format; readers of other tools' checkpoints return it.

    Attributes:
        codes: Unsigned codes and scales; its spec has an unsigned integer element and fp32 scales.
        zero_point: uint8, the shape of the scales: the code that stands for 0, of each block.
    """

    codes: PackedTensor
    zero_point: Tensor

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values in `dtype` or the original one; the product is rounded to it once, from fp32."""
        spec, shape = self.codes.spec, self.codes.shape
        codes = decode(unpack(self.codes.payload, spec.element_type.bits, shape[-1]), spec.element_type)
        blocks, keepdim = spec.granularity.blocked(codes), keepdim_shape(spec.granularity, shape)
        values = (blocks - self.zero_point.reshape(keepdim)) * self.codes.scale.reshape(keepdim)
        return unblocked(values, spec.granularity, shape).to(dtype or self.codes.dtype)
