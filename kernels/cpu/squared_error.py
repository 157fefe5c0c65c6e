"""The operator `squared_error` by the compiled code: a weight is decoded into the cache, and read once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import Quantized, parse_chain
from octavo.core.formats.quantization import check_shapes
from octavo.core.formats.squared_error import num_runs
from octavo.core.ops.stages import check_stored
from octavo.kernels.cpu.compiled import DTYPES
from octavo.kernels.cpu.library import library
from octavo.kernels.cpu.memory import empty
from octavo.kernels.cpu.packed_weight import PackedWeight, packed_weight, rounding_of, why_not

_ROUNDING = rounding_of(torch.float32, torch.float32)


def squared_error(x: Tensor, payload: Tensor, scale: Tensor, global_scale: Tensor | None, spec: str) -> Any:
    """Compute `octavo::squared_error`, or return `NotImplemented`: what is no matrix is left to the reference."""
    (only,) = parse_chain(spec)
    check_stored(payload, scale, global_scale, only)
    check_shapes(payload, scale, only, x.shape)
    if x.dim() != 2 or x.numel() == 0 or x.dtype not in DTYPES or declines(spec) is not None:
        return NotImplemented
    assert _ROUNDING is not None  # noqa: S101 (there is nothing to round)
    x = x.contiguous()
    # Named, so that what is a copy lives as long as the pointers to it.
    parts = Quantized(
        payload.contiguous(), scale.contiguous(), None if global_scale is None else global_scale.contiguous()
    )
    weight = packed_weight(parts, spec, (x.shape[0], x.shape[1]), _ROUNDING)
    sums = empty((2, x.shape[0], num_runs(x.shape[1])), torch.float64)
    _function()(weight, DTYPES[x.dtype], x.data_ptr(), sums.data_ptr(), torch.get_num_threads())
    return sums


def declines(spec: str) -> str | None:
    """Return why weights of a chain of one format are left to the reference, or None."""
    (only,) = parse_chain(spec)
    return "stacked weights" if only.is_stacked else why_not(only)


@cache
def _function() -> Callable[..., None]:
    weight, pointer, integer = ctypes.POINTER(PackedWeight), ctypes.c_void_p, ctypes.c_int64
    return library().function("octavo_squared_error", [weight, integer, pointer, pointer, integer])
