"""Reference implementations of the operators in plain torch, for every device without a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from octavo.core import formats
from octavo.core.formats import Quantized, QuantSpec, parse_chain
from octavo.core.formats.hadamard import hadamard_transform
from octavo.core.formats.quantization import check_shapes
from octavo.core.formats.row_pieces import row_pieces
from octavo.core.formats.spec import unstacked_chain
from octavo.core.formats.squared_error import run_sums
from octavo.core.ops.calls import operand
from octavo.core.ops.kernels import refer, run
from octavo.core.ops.packed_checks import (
    check_experts,
    check_packed_expert_linear,
    check_packed_linear,
)
from octavo.core.ops.schema import LIBRARY
from octavo.core.ops.stages import check_stored, stages


def _only(spec: str) -> QuantSpec:
    (single,) = parse_chain(spec)
    return single


def amax(x: Tensor, spec: str) -> Tensor:
    return formats.compute_amax(x, _only(spec))


def fake_quantize(x: Tensor, state: Sequence[Tensor], spec: str, range_mask: bool = True) -> Tensor:
    result = x
    for stage, tensors in stages(x, state, spec):
        result = formats.fake_quantize(result, tensors, stage)
    return x.clone(memory_format=torch.contiguous_format) if result is x else result.contiguous()


def fake_quantize_backward(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str) -> Tensor:
    for stage, tensors in stages(x, state, spec):
        if stage.state:
            grad = grad * formats.in_range(x, tensors, stage)
        x = formats.fake_quantize(x, tensors, stage)
    return grad.clone(memory_format=torch.contiguous_format)


def fake_quantize_state_backward(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str) -> list[Tensor]:
    inputs, chain = [x], stages(x, state, spec)
    for stage, tensors in chain[:-1]:
        inputs.append(formats.fake_quantize(inputs[-1], tensors, stage))
    grads: list[Tensor] = []
    for before, (stage, tensors) in zip(reversed(inputs), reversed(chain), strict=True):
        grads = formats.state_gradients(grad, before, tensors, stage) + grads
        if stage.state:
            grad = grad * formats.in_range(before, tensors, stage)
    return [part.contiguous() for part in grads]


def rotated_fake_quantize(
    x: Tensor, block: int, state: Sequence[Tensor], spec: str, range_mask: bool = True
) -> Tensor:
    rotated = hadamard_transform(x.detach(), block).contiguous()
    return operand(rotated, state, spec, range_mask)


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
    return product(operand(x, x_state, x_spec), operand(weight, weight_state, weight_spec), bias, dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """Return `linear(x, weight, bias)`, contiguous, of operands cast to `dtype` if there is one."""
    if dtype is not None:
        # Here and not by autocast, whose cache of cast parameters would keep these, which have no gradient.
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    # A transposed weight is copied first: it then rounds like one that was quantized, which is contiguous.
    return linear(x, weight.contiguous(), bias).contiguous()


def quantize(x: Tensor, state: Sequence[Tensor], spec: str) -> list[Tensor]:
    ((only, tensors),) = stages(x, state, spec)
    return [part.contiguous() for part in formats.quantize(x, tensors, only) if part is not None]


def dequantize(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    spec: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    only = _only(spec)
    check_stored(payload, scale, global_scale, only)
    return formats.dequantize(payload, scale, global_scale, only, shape, dtype).contiguous()


def squared_error(
    x: Tensor, payload: Tensor, scale: Tensor, global_scale: Tensor | None, spec: str
) -> Tensor:
    only, parts = _only(spec), Quantized(payload, scale, global_scale)
    check_stored(*parts, only)
    check_shapes(payload, scale, only, x.shape)
    if only.is_stacked and len(x):
        one = only.unstacked().key
        each = zip(x, payload, scale, [None] * len(x) if global_scale is None else global_scale, strict=True)
        return torch.stack([torch.ops.octavo.squared_error(*parts, one) for parts in each], dim=1)
    runs = [
        run_sums(values, torch.ops.octavo.dequantize(*codes, spec, values.shape, torch.float32))
        for values, codes in row_pieces(x, parts, only)
    ]
    return torch.cat(runs, dim=1)


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
    check_packed_linear(x, bias, Quantized(payload, scale, global_scale), weight_spec, weight_dtype, dtype)
    shape = (payload.shape[0], x.shape[-1])
    weight = torch.ops.octavo.dequantize(payload, scale, global_scale, weight_spec, shape, weight_dtype)
    return product(operand(x, x_state, x_spec), operand(weight, then_state, then_spec), bias, dtype)


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
    weight = Quantized(payload, scale, global_scale)
    check_packed_expert_linear(x, expert, bias, weight, weight_spec, weight_dtype, dtype)
    weights = _expert_weights(expert, weight, weight_spec, then_state, then_spec, weight_dtype, x.shape[-1])
    result = x.new_empty(x.shape[0], payload.shape[1], dtype=dtype)
    for index, rows, values in weights:
        result[rows] = product(x[rows], values, None if bias is None else bias[index], dtype)
    return result


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
    weight = Quantized(payload, scale, global_scale)
    weights = _expert_weights(expert, weight, weight_spec, then_state, then_spec, weight_dtype, in_features)
    result = grad.new_empty(grad.shape[0], in_features)
    for _, rows, values in weights:
        result[rows] = grad[rows] @ values.to(grad.dtype)
    return result


def _expert_weights(
    expert: Tensor,
    weight: Quantized,
    weight_spec: str,
    then_state: Sequence[Tensor],
    then_spec: str,
    dtype: torch.dtype,
    in_features: int,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each expert that rows ask for, those rows (int64) and its weight [out, in] in `dtype`."""
    one, then = unstacked_chain(weight_spec), unstacked_chain(then_spec)
    num_experts, out_features = weight.payload.shape[:2]
    used = torch.unique(expert).tolist()
    check_experts(used, num_experts)
    for index in used:
        parts = [None if part is None else part[index] for part in weight]
        values = torch.ops.octavo.dequantize(*parts, one, (out_features, in_features), dtype)
        values = operand(values, [state[index] for state in then_state], then)
        yield index, (expert == index).nonzero().flatten(), values


OPERATORS = (
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
)

for _function in OPERATORS:
    refer(_function.__name__, _function)
    LIBRARY.impl(  # type: ignore[no-untyped-call]
        _function.__name__, partial(run, _function.__name__), "CompositeExplicitAutograd"
    )
