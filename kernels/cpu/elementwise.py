"""The operators that work on each element with the scale of its block, by the compiled code.

Bit for bit the reference, except for the bits of a NaN. What has no elements, no dims or float64 values is left to it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from types import NotImplementedType
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec, element_type, parse_chain
from octavo.core.formats.packing import packed_length
from octavo.core.formats.quantization import check_shapes
from octavo.core.formats.rounding import decode
from octavo.core.formats.scales import step_from_stored
from octavo.core.ops.stages import check_stored, stages
from octavo.kernels.cpu.layout import CLayout, Layout, layout_of
from octavo.kernels.cpu.library import library
from octavo.kernels.cpu.memory import empty
from octavo.kernels.cpu.scaling import CScaling, Scaling, scaling_of

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


def amax(x: Tensor, spec: str) -> Tensor | NotImplementedType:
    """Compute `octavo::amax`."""
    (only,) = parse_chain(spec)
    layout = _layout(x, only)
    return NotImplemented if layout is None else _amax(x.contiguous(), only, layout)


def fake_quantize(
    x: Tensor, state: Sequence[Tensor], spec: str, range_mask: bool = True
) -> Tensor | NotImplementedType:
    """Compute `octavo::fake_quantize`."""
    chain = _chain(x, state, spec)
    if chain is None:
        return NotImplemented
    result = x.contiguous()
    for stage, tensors, layout in chain:
        result = _fake_quantize(result, tensors, stage, layout)
    return result


def fake_quantize_backward(
    grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str
) -> Tensor | NotImplementedType:
    """Compute `octavo::fake_quantize_backward`."""
    chain = _chain(x, state, spec)
    if chain is None or grad.dtype != x.dtype or grad.shape != x.shape:
        return NotImplemented
    masks = [position for position, (stage, _, _) in enumerate(chain) if stage.state]
    if not masks:
        return NotImplemented
    x, result = x.contiguous(), grad.contiguous()
    for position, (stage, tensors, layout) in enumerate(chain[: masks[-1] + 1]):
        if position in masks:
            result = _masked(result, x, tensors, stage, layout)
        if position < masks[-1]:
            x = _fake_quantize(x, tensors, stage, layout)
    return result


def quantize(x: Tensor, state: Sequence[Tensor], spec: str) -> list[Tensor] | NotImplementedType:
    """Compute `octavo::quantize`."""
    chain = _chain(x, state, spec)
    if chain is None:
        return NotImplemented
    ((only, tensors, layout),) = chain
    x = x.contiguous()
    codes = empty(x.shape, torch.uint8)
    scaling = _scaling(x, tensors, only, layout, only.granularity.scale_shape(x.shape))
    _run("quantize", layout.compiled, scaling.compiled, DTYPES[x.dtype], x.data_ptr(), codes.data_ptr())
    assert scaling.stored is not None  # noqa: S101 (a shape was given)
    parts = [_packed(codes, only.element_type.bits), scaling.stored]
    return parts if scaling.global_scale is None else [*parts, scaling.global_scale.clone()]


def dequantize(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    spec: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor | NotImplementedType:
    """Compute `octavo::dequantize`."""
    (only,) = parse_chain(spec)
    check_stored(payload, scale, global_scale, only)
    if dtype not in DTYPES or 0 in shape or not shape:
        return NotImplemented
    check_shapes(payload, scale, only, shape)
    layout = layout_of(only.granularity, tuple(shape))
    if layout is None:
        return NotImplemented
    codes = _unpacked(payload.contiguous(), only.element_type.bits, shape)
    steps = step_from_stored(scale, global_scale, only).contiguous()
    result = empty(shape, dtype)
    pointers = codes.data_ptr(), _values(only.element).data_ptr(), steps.data_ptr()
    _run("dequantize", layout.compiled, *pointers, DTYPES[dtype], result.data_ptr())
    return result


OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (amax, fake_quantize, fake_quantize_backward, quantize, dequantize)
}


def _chain(
    x: Tensor, state: Sequence[Tensor], spec: str
) -> list[tuple[QuantSpec, Sequence[Tensor], Layout]] | None:
    """Return each spec with its state and layout; None for what is left to the reference.

    Raises:
        ShapeError: as `core.ops.stages.stages`.
    """
    found = []
    for stage, tensors in stages(x, state, spec):
        layout = _layout(x, stage)
        if layout is None:
            return None
        found.append((stage, tensors, layout))
    return found or None


def _layout(x: Tensor, spec: QuantSpec) -> Layout | None:
    if x.dtype not in DTYPES or x.numel() == 0 or x.dim() == 0:
        return None
    return layout_of(spec.granularity, tuple(x.shape))


def _amax(x: Tensor, spec: QuantSpec, layout: Layout) -> Tensor:
    result = torch.zeros(spec.granularity.scale_shape(x.shape))
    _run("amax", layout.compiled, DTYPES[x.dtype], x.data_ptr(), result.data_ptr())
    return result


def _fake_quantize(x: Tensor, tensors: Sequence[Tensor], spec: QuantSpec, layout: Layout) -> Tensor:
    result = empty(x.shape, x.dtype)
    scaling = _scaling(x, tensors, spec, layout)
    pointers = x.data_ptr(), result.data_ptr()
    _run("fake_quantize", layout.compiled, scaling.compiled, DTYPES[x.dtype], *pointers)
    return result


def _masked(grad: Tensor, x: Tensor, tensors: Sequence[Tensor], spec: QuantSpec, layout: Layout) -> Tensor:
    result = empty(grad.shape, grad.dtype)
    scaling = _scaling(x, tensors, spec, layout)
    pointers = x.data_ptr(), grad.data_ptr(), result.data_ptr()
    _run("mask_gradient", layout.compiled, scaling.compiled, DTYPES[x.dtype], *pointers)
    return result


def _scaling(
    x: Tensor,
    tensors: Sequence[Tensor],
    spec: QuantSpec,
    layout: Layout,
    stored_shape: Sequence[int] | None = None,
) -> Scaling:
    named = dict(zip(spec.state, tensors, strict=True))
    largest = named.get("amax")
    if spec.dynamic and not layout.fits_cache:
        largest = _amax(x, spec, layout)
    return scaling_of(spec, layout, largest, named.get("global_amax"), stored_shape)


def _packed(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes
    columns = codes.shape[-1]
    result = empty((*codes.shape[:-1], packed_length(columns, bits)), torch.uint8)
    _run("pack", codes.data_ptr(), math.prod(codes.shape[:-1]), columns, bits, result.data_ptr())
    return result


def _unpacked(payload: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    if bits == 8:
        return payload
    result = empty(shape, torch.uint8)
    _run("unpack", payload.data_ptr(), math.prod(shape[:-1]), shape[-1], bits, result.data_ptr())
    return result


@cache
def _values(element: str) -> Tensor:
    """Return the value of each code, fp32, and zeros up to one for each byte."""
    known = element_type(element)
    values = decode(torch.arange(2**known.bits, dtype=torch.uint8), known)
    return torch.nn.functional.pad(values, (0, 256 - len(values)))


@cache
def _function(name: str) -> Callable[..., None]:
    return library().function(name, _ARGUMENTS[name])


def _run(name: str, *args: Any) -> None:
    _function(name)(*args, torch.get_num_threads())
