"""The operators between values and packed codes, by the compiled code: `quantize` and `dequantize`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import NotImplementedType

import torch
from torch import Tensor

from octavo.core.formats import element_type, parse_chain
from octavo.core.formats.packing import packed_length
from octavo.core.formats.quantization import check_shapes
from octavo.core.formats.rounding import decode
from octavo.core.formats.scales import step_from_stored
from octavo.core.ops.stages import check_stored
from octavo.kernels.cpu.compiled import DTYPES, run
from octavo.kernels.cpu.elementwise import chain_of, scaling_for
from octavo.kernels.cpu.layout import layout_of
from octavo.kernels.cpu.memory import empty


def quantize(x: Tensor, state: Sequence[Tensor], spec: str) -> list[Tensor] | NotImplementedType:
    """Compute `octavo::quantize`."""
    chain = chain_of(x, state, spec)
    if chain is None:
        return NotImplemented
    ((only, tensors, layout),) = chain
    x = x.contiguous()
    codes = empty(x.shape, torch.uint8)
    scaling = scaling_for(x, tensors, only, layout, only.granularity.scale_shape(x.shape))
    run("quantize", layout.compiled, scaling.compiled, DTYPES[x.dtype], x.data_ptr(), codes.data_ptr())
    assert scaling.stored is not None  # noqa: S101 (a shape was given)
    parts = [_packed(codes, only.element_type.bits), scaling.stored]
    return parts if scaling.global_scale is None else [*parts, scaling.global_scale]


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
    run("dequantize", layout.compiled, *pointers, DTYPES[dtype], result.data_ptr())
    return result


def _packed(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes
    columns = codes.shape[-1]
    result = empty((*codes.shape[:-1], packed_length(columns, bits)), torch.uint8)
    run("pack", codes.data_ptr(), math.prod(codes.shape[:-1]), columns, bits, result.data_ptr())
    return result


def _unpacked(payload: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    if bits == 8:
        return payload
    result = empty(shape, torch.uint8)
    run("unpack", payload.data_ptr(), math.prod(shape[:-1]), shape[-1], bits, result.data_ptr())
    return result


@cache
def _values(element: str) -> Tensor:
    """Return the value of each code, fp32, and zeros up to one for each byte."""
    known = element_type(element)
    values = decode(torch.arange(2**known.bits, dtype=torch.uint8, device="cpu"), known)
    return torch.nn.functional.pad(values, (0, 256 - len(values)))
