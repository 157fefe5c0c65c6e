"""A packed weight as the compiled products read it (`src/packed_weight.h`)."""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.core.formats import PerBlock, PerChannel, Quantized, QuantSpec, parse_chain
from octavo.core.formats.elements import ElementType
from octavo.core.formats.packing import packed_length
from octavo.core.formats.rounding import decode
from octavo.core.formats.scales import SCALE_DTYPES, step_from_stored

_CODES = {"int8": 2, "int8_narrow": 2, "uint8": 3, "uint8_narrow": 3, "e4m3": 4, "e5m2": 5}
_FOUR_BITS = 1
_ROUNDING = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class PackedWeight(ctypes.Structure):
    """`OctavoPackedWeight`; the tensors that it points to are its makers' to keep."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("payload", "values", "scales", "scale_values", "global_scale")
        ),
        *((name, ctypes.c_int64) for name in ("out_features", "in_features", "row_bytes")),
        *((name, ctypes.c_int64) for name in ("block_out", "block_in", "scales_per_row")),
        *((name, ctypes.c_int32) for name in ("bits", "codes", "rounding", "unused")),
    )


class _Tables(NamedTuple):
    codes: int
    bits: int
    values: Tensor  # fp32 [2^bits]: what each code stands for
    scale_values: Tensor | None  # fp32 [256]: what each scale of a byte stands for


def why_not(spec: QuantSpec) -> str | None:
    """Return why weights of a format (not stacked) are not read here, or None."""
    where = spec.granularity
    if isinstance(where, PerChannel) and where.axis not in (0, -2):
        return "scales along the input dim"
    return None


def rounding_of(weight_dtype: torch.dtype, dtype: torch.dtype) -> int | None:
    """Return how values that are rounded to one dtype and multiplied in another are rounded; None for not here."""
    narrow = {weight_dtype, dtype} - {torch.float32}
    return _ROUNDING.get(narrow.pop() if narrow else torch.float32) if len(narrow) < 2 else None


def packed_weight(weight: Quantized, spec: str, shape: tuple[int, int], rounding: int) -> PackedWeight:
    """Return what points to contiguous `weight`, of format `spec` (a chain of one) and shape [out, in]."""
    payload, scale, global_scale = weight
    second = None if global_scale is None else global_scale.data_ptr()
    return _pointing(payload.data_ptr(), scale.data_ptr(), second, spec, shape, rounding)


@lru_cache(maxsize=4096)
def _pointing(
    payload: int, scale: int, global_scale: int | None, spec: str, shape: tuple[int, int], rounding: int
) -> PackedWeight:
    """Return the structure of these addresses, which says nothing about what lies there."""
    tables = _tables(spec)
    block_out, block_in = _block(spec, shape)
    return PackedWeight(
        payload,
        tables.values.data_ptr(),
        scale,
        None if tables.scale_values is None else tables.scale_values.data_ptr(),
        global_scale,
        *(*shape, packed_length(shape[1], tables.bits), block_out, block_in, -(-shape[1] // block_in)),
        *(tables.bits, tables.codes, rounding, 0),
    )


def _block(spec: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns share a scale."""
    (only,) = parse_chain(spec)
    if isinstance(only.granularity, PerBlock):
        sizes = dict(only.granularity.sizes)
        return sizes.get(-2, 1), sizes.get(-1, 1)
    is_whole = not only.granularity.scale_shape(shape)
    return max(shape[0], 1) if is_whole else 1, max(shape[1], 1)


@cache  # for good: structures point to them
def _tables(spec: str) -> _Tables:
    (only,) = parse_chain(spec)
    element = only.element_type
    values = decode(torch.arange(2**element.bits, dtype=torch.uint8), element)
    scale_values = None
    if only.scale != "float32":
        stored = torch.arange(256, dtype=torch.uint8).view(SCALE_DTYPES[only.scale])
        scale_values = step_from_stored(stored, None, only)
    return _Tables(_codes(element), element.bits, values, scale_values)


def _codes(element: ElementType) -> int:
    return _FOUR_BITS if element.bits == 4 else _CODES.get(element.name, 0)
