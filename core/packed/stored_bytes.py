"""Tensors as bytes: how a layer stores scales, so that nothing that wraps a model casts or refuses them.

FSDP2's and DeepSpeed's mixed precision, `zero.Init` and `model.bfloat16()` cast every floating tensor that they find,
fp32 and 8-bit scales alike, and gloo sends no 8-bit floats. Bytes pass through all of them as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(values: Tensor) -> Tensor:
    """Return the bytes of `values` [*shape], any dtype: uint8 [*shape, itemsize].

    There is always one dim more than `values` has, so that rows stay rows. Shares memory with contiguous `values`.
    """
    return values.contiguous().unsqueeze(-1).view(torch.uint8)


def from_bytes(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `to_bytes` was given, of `dtype`, from uint8 [*shape, itemsize]; shares memory.

    Stored bytes that are elsewhere, as ZeRO-3 leaves them (shape [0]), become an empty tensor of that shape.
    """
    return stored.view(dtype).squeeze(-1)
