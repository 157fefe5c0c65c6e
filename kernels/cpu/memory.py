"""Memory for results."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from octavo.kernels.cpu.library import library

# Smaller tensors get memory that was used before, whose pages are there.
_FRESH_BYTES = 2**22


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized contiguous tensor; a large one lies in large pages where the system has them."""
    result = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    if result.nbytes >= _FRESH_BYTES:
        _prefer_large_pages()(result.data_ptr(), result.nbytes)
    return result


@cache
def _prefer_large_pages() -> Callable[[int, int], None]:
    return library().shared_function("octavo_prefer_large_pages", (ctypes.c_void_p, ctypes.c_int64))
