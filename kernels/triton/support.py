"""What these kernels leave to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from octavo.core.formats import PerBlock, QuantSpec, parse_chain
from octavo.core.formats.granularity import Stacked
from octavo.kernels.triton.geometry import LARGEST_BLOCK, power_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache(maxsize=1024)
def declined(spec_key: str) -> str | None:
    """Return why a chain of formats is left to the reference, or None."""
    return next((reason for spec in parse_chain(spec_key) if (reason := _declined(spec))), None)


def _declined(spec: QuantSpec) -> str | None:
    granularity = spec.granularity.each if isinstance(spec.granularity, Stacked) else spec.granularity
    if not isinstance(granularity, PerBlock):
        return None
    sizes = dict(granularity.sizes)
    if set(sizes) - {-1, -2}:
        return f"blocks along dim {min(sizes)}; these kernels know the last two"
    elements = power_of_two(sizes.get(-1, 1)) * power_of_two(sizes.get(-2, 1))
    if elements > LARGEST_BLOCK:
        return f"blocks of {elements} elements (lengths rounded up to powers of two); at most {LARGEST_BLOCK}"
    return None


def takes(x: Tensor) -> bool:
    """Return whether kernels read `x`: one of `DTYPES`, not empty, no scalar."""
    return x.dtype in DTYPES and x.numel() > 0 and x.dim() > 0


def takes_state(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> bool:
    """Return whether calibrated tensors lie beside `x` with the elements that `spec` has for it."""
    if len(state) != len(spec.state):
        return False
    lengths = [torch.Size(spec.state_shape(name, x.shape)).numel() for name in spec.state]
    return all(
        tensor.device == x.device and tensor.dtype == torch.float32 and tensor.numel() == length
        for tensor, length in zip(state, lengths, strict=True)
    )
