"""Shapes and dtypes of the operators' results, for meta tensors and compilers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from octavo.core.errors import UnsupportedError
from octavo.core.formats import Quantized, parse_chain
from octavo.core.formats.packing import packed_length
from octavo.core.formats.scales import SCALE_DTYPES
from octavo.core.formats.squared_error import num_runs
from octavo.core.ops.packed_checks import check_packed_expert_linear, check_packed_linear
from octavo.core.ops.reference import product
from octavo.core.ops.schema import LIBRARY


def _check_values(x: Tensor, *others: Tensor | None) -> None:
    """Refuse operands without values next to `x`: torch calls these functions for them, and never the operator."""
    device = x.device.type
    if device != "meta" and any(other is not None and other.device.type == "meta" for other in others):
        raise UnsupportedError(
            f"a tensor on {device} meets calibrated state or weights on the meta device, which have no values; load "
            "them first. Offloading the buffers of quantizers (accelerate's offload_buffers=True) is not supported"
        )


def amax(x: Tensor, spec: str) -> Tensor:
    (only,) = parse_chain(spec)
    return x.new_empty(only.granularity.scale_shape(x.shape), dtype=torch.float32)


def fake_quantize(x: Tensor, state: Sequence[Tensor], spec: str, range_mask: bool) -> Tensor:
    _check_values(x, *state)
    return x.new_empty(x.shape)


def rotated_fake_quantize(
    x: Tensor, block: int, state: Sequence[Tensor], spec: str, range_mask: bool
) -> Tensor:
    _check_values(x, *state)
    return x.new_empty(x.shape)


def fake_quantize_backward(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str) -> Tensor:
    _check_values(grad, x, *state)
    return grad.new_empty(grad.shape)


def fake_quantize_state_backward(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str) -> list[Tensor]:
    _check_values(grad, x, *state)
    return [tensor.new_empty(tensor.shape, dtype=torch.float32) for tensor in state]


def fake_quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_state: Sequence[Tensor],
    x_spec: str,
    weight_state: Sequence[Tensor],
    weight_spec: str,
    x_range_mask: bool,
    weight_range_mask: bool,
    dtype: torch.dtype | None,
) -> Tensor:
    _check_values(x, weight, bias, *x_state, *weight_state)
    return product(x, weight, bias, dtype)


def quantize(x: Tensor, state: Sequence[Tensor], spec: str) -> list[Tensor]:
    _check_values(x, *state)
    (only,) = parse_chain(spec)
    length = packed_length(x.shape[-1], only.element_type.bits)
    scale_shape = only.granularity.scale_shape(x.shape)
    parts = [
        x.new_empty([*x.shape[:-1], length], dtype=torch.uint8),
        x.new_empty(scale_shape, dtype=SCALE_DTYPES[only.scale]),
    ]
    return parts if only.global_max is None else [*parts, x.new_empty([], dtype=torch.float32)]


def dequantize(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    spec: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    _check_values(payload, scale, global_scale)
    return payload.new_empty(shape, dtype=dtype)


def squared_error(
    x: Tensor, payload: Tensor, scale: Tensor, global_scale: Tensor | None, spec: str
) -> Tensor:
    _check_values(x, payload, scale, global_scale)
    return x.new_empty((2, *x.shape[:-1], num_runs(x.shape[-1])), dtype=torch.float64)


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
) -> Tensor:
    _check_values(x, bias, *x_state, payload, scale, global_scale, *then_state)
    check_packed_linear(x, bias, Quantized(payload, scale, global_scale), weight_spec, weight_dtype, dtype)
    return product(x, payload.new_empty((payload.shape[0], x.shape[-1]), dtype=weight_dtype), bias, dtype)


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
) -> Tensor:
    _check_values(x, expert, bias, payload, scale, global_scale, *then_state)
    weight = Quantized(payload, scale, global_scale)
    check_packed_expert_linear(x, expert, bias, weight, weight_spec, weight_dtype, dtype)
    return x.new_empty(x.shape[0], payload.shape[1], dtype=dtype)


def packed_expert_linear_backward(
    grad: Tensor,
    expert: Tensor,
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    weight_spec: str,
    then_state: Sequence[Tensor],
    then_spec: str,
    weight_dtype: torch.dtype,
    in_features: int,
) -> Tensor:
    _check_values(grad, expert, payload, scale, global_scale, *then_state)
    return grad.new_empty(grad.shape[0], in_features)


for _function in (
    amax,
    fake_quantize,
    fake_quantize_backward,
    fake_quantize_state_backward,
    rotated_fake_quantize,
    fake_quantized_linear,
    quantize,
    dequantize,
    squared_error,
    packed_linear,
    packed_expert_linear,
    packed_expert_linear_backward,
):
    register_fake(f"octavo::{_function.__name__}", _function, lib=LIBRARY)
