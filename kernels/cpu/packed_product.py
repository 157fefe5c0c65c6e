"""Products with packed weights: a few rows of codes at a time are decoded into the cache, never the whole weight.

Up to `MOST_ROWS` rows of x are multiplied where codes are decoded. For more of them, panels of decoded rows are left to
torch's matrix product; int8 on both sides to `int8_product`, where the processor has instructions for that. The
weight's values are those of the reference, bit for bit; sums are in fp32 and rounded once.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from types import NotImplementedType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from octavo.core.formats import Quantized, parse_chain
from octavo.core.formats.spec import unstacked_chain
from octavo.core.ops.calls import NOTHING, operand
from octavo.core.ops.packed_checks import (
    Kind,
    check_experts,
    check_packed_expert_linear,
    check_packed_linear,
)
from octavo.kernels.cpu.compiled import DTYPES
from octavo.kernels.cpu.int8_product import int8_product, multiplies_exactly
from octavo.kernels.cpu.library import library
from octavo.kernels.cpu.machine import multiplies_bfloat16, multiplies_int8
from octavo.kernels.cpu.packed_weight import PackedWeight, packed_weight, rounding_of, why_not

MOST_ROWS = 64  # of x, in src/packed_product.cpp
_PANEL_VALUES = 2**20  # fp32 values of a panel: 4 MB
_ALONE = 2**17  # products that one thread does faster than several wake up


def packed_linear(
    x: Tensor,
    bias: Tensor | None,
    x_state: Sequence[Tensor],
    x_spec: str,
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    weight_spec: str,
    then_state: Sequence[Tensor],
    then_spec: str,
    weight_dtype: torch.dtype,
    x_range_mask: bool,
    dtype: torch.dtype | None,
) -> Tensor | NotImplementedType:
    """Compute the operator; a chain of formats of the weight and float64 are left to the reference."""
    kinds = Kind.of(x), None if bias is None else Kind.of(bias), _kinds(payload, scale, global_scale)
    rounding = _rounding_of_linear(*kinds, weight_spec, then_spec, weight_dtype, dtype)
    if rounding is None:
        return NotImplemented  # type: ignore[no-any-return]
    weight = Quantized(payload, scale, global_scale)
    shape = (*x.shape[:-1], payload.shape[0])
    if _is_exact(x, x_spec, weight_spec):
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        return int8_product(rows, x_state, x_spec, bias, weight).to(dtype or x.dtype).reshape(shape)
    rows = operand(x, x_state, x_spec)
    return _product(rows, bias, weight, weight_spec, rounding, dtype or x.dtype, shape)


def packed_expert_linear(
    x: Tensor,
    expert: Tensor,
    bias: Tensor | None,
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    weight_spec: str,
    then_state: Sequence[Tensor],
    then_spec: str,
    weight_dtype: torch.dtype,
    dtype: torch.dtype | None,
) -> Tensor | NotImplementedType:
    """Compute the operator, expert by expert; what is left to the reference as in `packed_linear`."""
    weight = Quantized(payload, scale, global_scale)
    check_packed_expert_linear(x, expert, bias, weight, weight_spec, weight_dtype, dtype)
    one = unstacked_chain(weight_spec)
    rounding = _rounding(one, then_spec, weight_dtype, dtype or x.dtype)
    if rounding is None:
        return NotImplemented  # type: ignore[no-any-return]
    used, num_rows = torch.unique(expert, return_counts=True)
    check_experts(used.tolist(), payload.shape[0])
    by_expert = torch.split(expert.argsort(stable=True), num_rows.tolist())
    result = x.new_empty(x.shape[0], payload.shape[1], dtype=dtype)
    for index, rows in zip(used.tolist(), by_expert, strict=True):
        parts = _each(weight, lambda part: part[index])  # noqa: B023 (called at once)
        offset = None if bias is None else bias[index]
        shape = len(rows), payload.shape[1]
        result[rows] = _product(x[rows], offset, parts, one, rounding, result.dtype, shape)
    return result


def declines(spec: str) -> str | None:
    """Return why weights of a chain of formats are left to the reference, or None."""
    first, *then = parse_chain(unstacked_chain(spec))
    return "values that are rounded once more" if then else why_not(first)


@lru_cache(maxsize=4096)
def _rounding_of_linear(
    x: Kind,
    bias: Kind | None,
    weight: tuple[Kind, Kind, Kind | None],
    weight_spec: str,
    then_spec: str,
    weight_dtype: torch.dtype,
    dtype: torch.dtype | None,
) -> int | None:
    """Check the operands of `packed_linear`, those of one kind once, and return `_rounding`."""
    check_packed_linear(x, bias, weight, weight_spec, weight_dtype, dtype)
    return _rounding(weight_spec, then_spec, weight_dtype, dtype or x.dtype)


def _kinds(payload: Tensor, scale: Tensor, global_scale: Tensor | None) -> tuple[Kind, Kind, Kind | None]:
    return Kind.of(payload), Kind.of(scale), None if global_scale is None else Kind.of(global_scale)


def _rounding(spec: str, then_spec: str, weight_dtype: torch.dtype, dtype: torch.dtype) -> int | None:
    """Return how the weight's values are rounded; None where the product is not computed here."""
    return rounding_of(weight_dtype, dtype) if then_spec == NOTHING and declines(spec) is None else None


def _is_exact(x: Tensor, x_spec: str, weight_spec: str) -> bool:
    """Return whether the product is one of integers."""
    is_large = x.numel() > MOST_ROWS * x.shape[-1]
    return is_large and multiplies_int8() and multiplies_exactly(x_spec, weight_spec, x.shape[-1])


def _product(
    x: Tensor,
    bias: Tensor | None,
    weight: Quantized,
    spec: str,
    rounding: int,
    dtype: torch.dtype,
    shape: Sequence[int],
) -> Tensor:
    """Return x [..., in] times the weight, of `shape` [..., out] and `dtype`, of operands rounded to it."""
    x = _ready(x, dtype)
    bias = None if bias is None else _ready(bias, dtype)
    weight = _each(weight, Tensor.contiguous)
    pointers = packed_weight(weight, spec, (shape[-1], x.shape[-1]), rounding)
    num_rows = math.prod(shape[:-1])
    if num_rows > MOST_ROWS:
        return _by_panels(x.reshape(num_rows, x.shape[-1]), bias, pointers).reshape(shape)
    result = torch.empty(shape, dtype=dtype, device="cpu")
    _functions().product(
        pointers,
        DTYPES[dtype],
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        num_rows,
        result.data_ptr(),
        _threads(num_rows * pointers.out_features * pointers.in_features),
    )
    return result


def _ready(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x.to(dtype).contiguous()`, of what is that already without asking torch for it."""
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


def _each(weight: Quantized, change: Callable[[Tensor], Tensor]) -> Quantized:
    payload, scale, global_scale = weight
    return Quantized(change(payload), change(scale), None if global_scale is None else change(global_scale))


def _by_panels(x: Tensor, bias: Tensor | None, weight: PackedWeight) -> Tensor:
    """Decode a panel of rows at a time, and leave its product to torch."""
    result = x.new_empty(x.shape[0], weight.out_features)
    dtype = x.dtype if x.dtype == torch.bfloat16 and multiplies_bfloat16() else torch.float32
    x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    for begin, panel in _panels(weight):
        columns = slice(begin, begin + panel.shape[0])
        result[:, columns] = linear(x, panel.to(dtype), None if bias is None else bias[columns])
    return result


def _panels(weight: PackedWeight) -> Iterator[tuple[int, Tensor]]:
    length = max(_PANEL_VALUES // max(weight.in_features, 1), 1)
    for begin in range(0, weight.out_features, length):
        count = min(length, weight.out_features - begin)
        panel = torch.empty(count, weight.in_features)
        _functions().rows(weight, begin, count, panel.data_ptr(), _threads(panel.numel()))
        yield begin, panel


def _threads(num_products: int) -> int:
    return 1 if num_products < _ALONE else torch.get_num_threads()


class Functions:
    """The compiled functions."""

    def __init__(self, function: Callable[[str, Sequence[Any]], Callable[..., None]]) -> None:
        weight, pointer, integer = ctypes.POINTER(PackedWeight), ctypes.c_void_p, ctypes.c_int64
        self.product: Callable[..., None] = function(
            "octavo_packed_product", [weight, integer, pointer, pointer, integer, pointer, integer]
        )
        self.rows: Callable[..., None] = function(
            "octavo_packed_rows", [weight, integer, integer, pointer, integer]
        )


@cache
def _functions() -> Functions:
    return Functions(library().function)
