"""The operators between values and packed codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec, parse_chain
from octavo.core.formats.packing import pack, packed_length, unpack
from octavo.core.formats.scales import SCALE_DTYPES, global_scale_from_amax, scales_from_amax
from octavo.kernels.triton.launch import default_geometry, packs, start
from octavo.kernels.triton.rounding import known_maxima
from octavo.kernels.triton.support import DTYPES, declined, takes


def quantize(x: Tensor, state: Sequence[Tensor], spec: str) -> Any:
    """Compute `octavo::quantize`."""
    (only,) = parse_chain(spec)
    if declined(spec) or not takes(x):
        return NotImplemented
    x = x.contiguous()
    maxima = known_maxima(x, state, only)
    if maxima is NotImplemented:
        return NotImplemented
    amax, global_amax, known = maxima
    payload, stored = _codes_and_scales(x, amax, global_amax, known)
    if global_amax is None:
        return [payload, stored]
    return [payload, stored, global_scale_from_amax(global_amax, only).reshape(_globals(only, x.shape))]


def _codes_and_scales(
    x: Tensor, amax: Tensor | None, global_amax: Tensor | None, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    from octavo.kernels.triton.device.quantize import quantize_kernel

    bits = _bits_in_memory(spec, x.shape, whole=spec.dynamic)
    payload = x.new_empty([*x.shape[:-1], packed_length(x.shape[-1], bits)], dtype=torch.uint8)
    stored = x.new_empty(spec.granularity.scale_shape(x.shape), dtype=SCALE_DTYPES[spec.scale])
    cut = default_geometry(spec, x.shape, whole=spec.dynamic)
    tensors = [payload, _bytes(stored), x, amax, global_amax]
    start(quantize_kernel, tensors, spec, x.shape, whole=spec.dynamic, bits=bits)
    if cut is not None and not cut.owns_scales and amax is not None:
        shaped = amax.reshape(stored.shape)
        stored = scales_from_amax(shaped, global_amax, spec).stored
    if bits != spec.element_type.bits:
        payload = pack(payload, spec.element_type.bits)
    return payload, stored


def dequantize(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    spec: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Any:
    """Compute `octavo::dequantize`."""
    from octavo.kernels.triton.device.quantize import dequantize_kernel

    (only,) = parse_chain(spec)
    parts = payload, scale, global_scale
    if declined(spec) or dtype not in DTYPES or not _fit(*parts, only, shape):
        return NotImplemented
    bits = _bits_in_memory(only, shape)
    if bits != only.element_type.bits:
        payload = unpack(payload, only.element_type.bits, shape[-1])
    result = payload.new_empty(shape, dtype=dtype)
    level = None if global_scale is None else global_scale.contiguous()
    tensors = [result, payload.contiguous(), _bytes(scale.contiguous()), level]
    start(dequantize_kernel, tensors, only, shape, bits=bits)
    return result


def _fit(
    payload: Tensor, scale: Tensor, global_scale: Tensor | None, spec: QuantSpec, shape: Sequence[int]
) -> bool:
    """Return whether these are the parts of a tensor of `shape` that kernels read; the reference says what is wrong."""
    if not shape or 0 in shape or default_geometry(spec, shape) is None:
        return False
    expected = {
        payload: ((*shape[:-1], packed_length(shape[-1], spec.element_type.bits)), torch.uint8),
        scale: (spec.granularity.scale_shape(shape), SCALE_DTYPES[spec.scale]),
    }
    if (global_scale is None) != (spec.global_max is None):
        return False
    if global_scale is not None:
        expected[global_scale] = _globals(spec, shape), torch.float32
    return all(
        tuple(part.shape) == part_shape and part.dtype == dtype and part.device == payload.device
        for part, (part_shape, dtype) in expected.items()
    )


def _globals(spec: QuantSpec, shape: Sequence[int]) -> tuple[int, ...]:
    return spec.state_shape("global_amax", shape)


def _bits_in_memory(spec: QuantSpec, shape: Sequence[int], whole: bool = False) -> int:
    """Return the width of codes that kernels write or read: a byte each, where packed bytes belong to two programs."""
    cut = default_geometry(spec, shape, whole)
    bits = spec.element_type.bits
    return bits if cut is not None and packs(cut, shape, bits) else 8


def _bytes(stored: Tensor) -> Tensor:
    """Return FP8 scales as their bytes, which every architecture reads."""
    return stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored
