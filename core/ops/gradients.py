"""Gradients of the operators: straight through, with a range mask, recomputing what plain layers would save."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd

from octavo.core.formats import parse_chain
from octavo.core.formats.hadamard import hadamard_transform
from octavo.core.formats.spec import unstacked_chain
from octavo.core.ops.calls import operand
from octavo.core.ops.schema import LIBRARY


def _has_mask(spec: str, range_mask: bool) -> bool:
    """Return whether gradients stop somewhere: only calibrated scales let values saturate."""
    return range_mask and any(stage.state for stage in parse_chain(spec))


def _masked(grad: Tensor, x: Tensor, state: list[Tensor], spec: str) -> Tensor:
    masked: Tensor = torch.ops.octavo.fake_quantize_backward(grad, x, state, spec)
    return masked


def _setup_fake_quantize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, state, spec, range_mask = inputs
    ctx.spec, ctx.num_state = spec, len(state)
    ctx.has_mask = _has_mask(spec, range_mask)
    ctx.save_for_backward(*((x, *state) if ctx.has_mask else ()))


def _fake_quantize_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.has_mask:
        x, *state = ctx.saved_tensors
        grad = _masked(grad, x, state, ctx.spec)
    return grad, [None] * ctx.num_state, None, None


def _setup_rotated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.block, state, ctx.spec, range_mask = inputs
    ctx.num_state = len(state)
    ctx.has_mask = _has_mask(ctx.spec, range_mask)
    ctx.save_for_backward(*((x, *state) if ctx.has_mask else ()))


def _rotated_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.has_mask:
        x, *state = ctx.saved_tensors
        grad = _masked(grad, hadamard_transform(x, ctx.block), state, ctx.spec)
    # The matrix is symmetric: its transpose, which gradients are multiplied with, is itself.
    return hadamard_transform(grad, ctx.block), None, [None] * ctx.num_state, None, None


def _setup_mask(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, state, ctx.spec = inputs
    ctx.num_state = len(state)
    ctx.save_for_backward(x, *state)


def _mask_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *state = ctx.saved_tensors
    return _masked(grad, x, state, ctx.spec), None, [None] * ctx.num_state, None


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, x_state, x_spec, weight_state, weight_spec, x_range_mask, weight_range_mask, _ = inputs
    ctx.x_spec, ctx.weight_spec = x_spec, weight_spec
    ctx.has_x_mask = _has_mask(x_spec, x_range_mask)
    ctx.has_weight_mask = _has_mask(weight_spec, weight_range_mask)
    ctx.num_x_state, ctx.num_weight_state = len(x_state), len(weight_state)
    ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
    # Each side is needed for the gradient of the other one, and for the mask of its own.
    x_grad, weight_grad = ctx.needs_input_grad[:2]
    keeps_x = weight_grad or (x_grad and ctx.has_x_mask)
    keeps_weight = x_grad or (weight_grad and ctx.has_weight_mask)
    ctx.save_for_backward(x if keeps_x else None, weight if keeps_weight else None, *x_state, *weight_state)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, *state = ctx.saved_tensors
    x_side = state[: ctx.num_x_state], ctx.x_spec
    weight_side = state[ctx.num_x_state :], ctx.weight_spec
    x_dtype, weight_dtype, bias_dtype = ctx.dtypes
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = (grad @ operand(weight, *weight_side, ctx.has_weight_mask).to(grad.dtype)).to(x_dtype)
        grad_x = _masked(grad_x, x, *x_side) if ctx.has_x_mask else grad_x
    rows = grad.reshape(-1, grad.shape[-1])
    if ctx.needs_input_grad[1]:
        x_rows = operand(x, *x_side, ctx.has_x_mask).reshape(-1, x.shape[-1]).to(grad.dtype)
        grad_weight = (rows.t() @ x_rows).to(weight_dtype)
        grad_weight = _masked(grad_weight, weight, *weight_side) if ctx.has_weight_mask else grad_weight
    if ctx.needs_input_grad[2]:
        grad_bias = rows.sum(0).to(bias_dtype)
    none_x, none_weight = [None] * ctx.num_x_state, [None] * ctx.num_weight_state
    return grad_x, grad_weight, grad_bias, none_x, None, none_weight, None, None, None, None


def _setup_packed_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, x_state, x_spec, payload, scale, global_scale, *rest, weight_dtype, x_range_mask, _ = inputs
    ctx.weight_spec, then_state, ctx.then_spec = rest
    ctx.x_spec, ctx.weight_dtype = x_spec, weight_dtype
    ctx.has_mask = _has_mask(x_spec, x_range_mask)
    ctx.num_x_state, ctx.num_then = len(x_state), len(then_state)
    ctx.x_dtype, ctx.bias_dtype, ctx.shape = x.dtype, None if bias is None else bias.dtype, x.shape[-1]
    x_kept = x if ctx.has_mask and ctx.needs_input_grad[0] else None
    ctx.save_for_backward(x_kept, payload, scale, global_scale, *x_state, *then_state)


def _packed_linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, payload, scale, global_scale, *state = ctx.saved_tensors
    x_state, then_state = state[: ctx.num_x_state], state[ctx.num_x_state :]
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        shape = (payload.shape[0], ctx.shape)
        weight = torch.ops.octavo.dequantize(
            payload, scale, global_scale, ctx.weight_spec, shape, ctx.weight_dtype
        )
        weight = operand(weight, then_state, ctx.then_spec, False)
        grad_x = (grad @ weight.to(grad.dtype)).to(ctx.x_dtype)
        grad_x = _masked(grad_x, x, x_state, ctx.x_spec) if ctx.has_mask else grad_x
    if ctx.needs_input_grad[1]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    none_x, none_then = [None] * ctx.num_x_state, [None] * ctx.num_then
    return grad_x, grad_bias, none_x, None, None, None, None, None, none_then, None, None, None, None


def _setup_packed_expert_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, expert, bias, payload, scale, global_scale, *rest, ctx.weight_dtype = inputs
    ctx.weight_spec, then_state, ctx.then_spec = rest
    ctx.num_then, ctx.x_dtype, ctx.shape = len(then_state), x.dtype, x.shape[-1]
    ctx.bias = None if bias is None else (bias.dtype, tuple(bias.shape))
    ctx.save_for_backward(expert, payload, scale, global_scale, *then_state)


def _packed_expert_linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    expert, payload, scale, global_scale, *then_state = ctx.saved_tensors
    one, then = unstacked_chain(ctx.weight_spec), unstacked_chain(ctx.then_spec)
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = grad.new_zeros(grad.shape[0], ctx.shape, dtype=ctx.x_dtype)
        shape = (payload.shape[1], ctx.shape)
        for index in torch.unique(expert).tolist():
            rows = (expert == index).nonzero().flatten()
            parts = [None if part is None else part[index] for part in (payload, scale, global_scale)]
            weight = torch.ops.octavo.dequantize(*parts, one, shape, ctx.weight_dtype)
            weight = operand(weight, [state[index] for state in then_state], then, False)
            grad_x[rows] = (grad[rows] @ weight.to(grad.dtype)).to(ctx.x_dtype)
    if ctx.needs_input_grad[2]:
        dtype, shape = ctx.bias
        grad_bias = grad.new_zeros(shape, dtype=grad.dtype).index_add_(0, expert, grad).to(dtype)
    return grad_x, None, grad_bias, None, None, None, None, [None] * ctx.num_then, None, None


register_autograd(
    "octavo::fake_quantize", _fake_quantize_backward, setup_context=_setup_fake_quantize, lib=LIBRARY
)
register_autograd("octavo::fake_quantize_backward", _mask_backward, setup_context=_setup_mask, lib=LIBRARY)
register_autograd(
    "octavo::rotated_fake_quantize", _rotated_backward, setup_context=_setup_rotated, lib=LIBRARY
)
register_autograd("octavo::fake_quantized_linear", _linear_backward, setup_context=_setup_linear, lib=LIBRARY)
register_autograd(
    "octavo::packed_linear", _packed_linear_backward, setup_context=_setup_packed_linear, lib=LIBRARY
)
register_autograd(
    "octavo::packed_expert_linear",
    _packed_expert_linear_backward,
    setup_context=_setup_packed_expert_linear,
    lib=LIBRARY,
)
