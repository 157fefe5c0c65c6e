"""Reference implementations of the operators in plain torch, for every device without a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from octavo.core import formats
from octavo.core.errors import ShapeError
from octavo.core.formats import QuantSpec, parse_chain
from octavo.core.formats.hadamard import hadamard_transform
from octavo.core.formats.spec import unstacked_chain
from octavo.core.ops.calls import operand
from octavo.core.ops.kernels import run
from octavo.core.ops.schema import LIBRARY


def stages(state: Sequence[Tensor], spec: str) -> list[tuple[QuantSpec, Sequence[Tensor]]]:
    """Return each spec of a chain with its part of the state."""
    chain = parse_chain(spec)
    names = [name for stage in chain for name in stage.state]
    if len(state) != len(names):
        raise ShapeError(
            f"a chain of {[str(stage) for stage in chain]} takes {len(names)} calibrated tensors "
            f"({', '.join(names) or 'none'}), found {len(state)}"
        )
    rest = iter(state)
    return [(stage, [next(rest) for _ in stage.state]) for stage in chain]


def _only(spec: str) -> QuantSpec:
    (single,) = parse_chain(spec)
    return single


def amax(x: Tensor, spec: str) -> Tensor:
    return formats.compute_amax(x, _only(spec))


def fake_quantize(x: Tensor, state: Sequence[Tensor], spec: str, range_mask: bool = True) -> Tensor:
    result = x
    for stage, tensors in stages(state, spec):
        result = formats.fake_quantize(result, tensors, stage)
    return x.clone(memory_format=torch.contiguous_format) if result is x else result.contiguous()


def fake_quantize_backward(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str) -> Tensor:
    for stage, tensors in stages(state, spec):
        if stage.state:
            grad = grad * formats.in_range(x, tensors, stage)
        x = formats.fake_quantize(x, tensors, stage)
    return grad.clone(memory_format=torch.contiguous_format)


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
    return [part.contiguous() for part in formats.quantize(x, state, _only(spec)) if part is not None]


def dequantize(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    spec: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return formats.dequantize(payload, scale, global_scale, _only(spec), shape, dtype).contiguous()


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
) -> Tensor:
    one, then = unstacked_chain(weight_spec), unstacked_chain(then_spec)
    shape = (payload.shape[1], x.shape[-1])
    result = x.new_empty(x.shape[0], payload.shape[1])
    for index in torch.unique(expert).tolist():
        rows = (expert == index).nonzero().flatten()
        parts = [None if part is None else part[index] for part in (payload, scale, global_scale)]
        weight = torch.ops.octavo.dequantize(*parts, one, shape, weight_dtype)
        weight = operand(weight, [state[index] for state in then_state], then)
        result[rows] = linear(x[rows], weight, None if bias is None else bias[index])
    return result


OPERATORS = (
    amax,
    fake_quantize,
    fake_quantize_backward,
    rotated_fake_quantize,
    fake_quantized_linear,
    quantize,
    dequantize,
    packed_linear,
    packed_expert_linear,
)

for _function in OPERATORS:
    LIBRARY.impl(  # type: ignore[no-untyped-call]
        _function.__name__, partial(run, _function.__name__, _function), "CompositeExplicitAutograd"
    )
