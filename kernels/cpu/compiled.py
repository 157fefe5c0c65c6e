"""The compiled functions of the elementwise operators, and how they are called."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from octavo.kernels.cpu.layout import CLayout
from octavo.kernels.cpu.library import library
from octavo.kernels.cpu.scaling import CScaling

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_LAYOUT, _SCALING = ctypes.POINTER(CLayout), ctypes.POINTER(CScaling)
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    "amax": (_LAYOUT, _NUMBER, _POINTER, _POINTER, _NUMBER),
    "fake_quantize": (_LAYOUT, _SCALING, _NUMBER, _POINTER, _POINTER, _NUMBER),
    "quantize": (_LAYOUT, _SCALING, _NUMBER, _POINTER, _POINTER, _NUMBER),
    "mask_gradient": (_LAYOUT, _SCALING, _NUMBER, _POINTER, _POINTER, _POINTER, _NUMBER),
    "pack": (_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, _NUMBER),
    "unpack": (_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, _NUMBER),
    "dequantize": (_LAYOUT, _POINTER, _POINTER, _POINTER, _NUMBER, _POINTER, _NUMBER),
}


@cache
def _function(name: str) -> Callable[..., None]:
    return library().function(name, _ARGUMENTS[name])


def run(name: str, *args: Any) -> None:
    """Call the compiled function `name`, on as many threads as torch has."""
    _function(name)(*args, torch.get_num_threads())
