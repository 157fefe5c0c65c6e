"""Whether a tensor's values are finite, found in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(values: Tensor) -> bool:
    """Return whether a float tensor of 16 bits or more has neither NaN nor infinity.

    Its extremes tell, which take no memory; `isfinite` makes copies of the tensor's size.
    """
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values.detach())
    return bool(low.isfinite() & high.isfinite())
