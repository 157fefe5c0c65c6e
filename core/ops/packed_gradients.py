"""Gradients of products with packed weights: they reach x and the bias, and nothing is kept unpacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd

from octavo.core.ops.calls import operand
from octavo.core.ops.gradients import has_mask, masked
from octavo.core.ops.schema import LIBRARY


def _setup_packed_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, x_state, x_spec, payload, scale, global_scale, *rest, weight_dtype, x_range_mask, _ = inputs
    ctx.weight_spec, then_state, ctx.then_spec = rest
    ctx.x_spec, ctx.weight_dtype = x_spec, weight_dtype
    ctx.has_mask = has_mask(x_spec, x_range_mask)
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
        grad_x = masked(grad_x, x, x_state, ctx.x_spec) if ctx.has_mask else grad_x
    if ctx.needs_input_grad[1]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    none_x, none_then = [None] * ctx.num_x_state, [None] * ctx.num_then
    return grad_x, grad_bias, none_x, None, None, None, None, None, none_then, None, None, None, None


def _setup_packed_expert_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, expert, bias, payload, scale, global_scale, *rest, ctx.weight_dtype, _ = inputs
    ctx.weight_spec, then_state, ctx.then_spec = rest
    ctx.num_then, ctx.x_dtype, ctx.in_features = len(then_state), x.dtype, x.shape[-1]
    ctx.bias = None if bias is None else (bias.dtype, bias.shape)
    ctx.save_for_backward(expert, payload, scale, global_scale, *then_state)


def _packed_expert_linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    expert, *parts = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        weight = _expert_weight(ctx, parts)
        grad_x = torch.ops.octavo.packed_expert_linear_backward(grad, expert, *weight, ctx.in_features)
        grad_x = grad_x.to(ctx.x_dtype)
    if ctx.needs_input_grad[2]:
        dtype, shape = ctx.bias
        grad_bias = grad.new_zeros(shape).index_add(0, expert, grad).to(dtype)
    return grad_x, None, grad_bias, None, None, None, None, [None] * ctx.num_then, None, None, None


def _setup_expert_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, expert, payload, scale, global_scale, *rest, ctx.weight_dtype, _ = inputs
    ctx.weight_spec, then_state, ctx.then_spec = rest
    ctx.num_then = len(then_state)
    ctx.save_for_backward(expert, payload, scale, global_scale, *then_state)


def _expert_backward_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    expert, *parts = ctx.saved_tensors
    weight = _expert_weight(ctx, parts)
    grad_grad = torch.ops.octavo.packed_expert_linear(grad, expert, None, *weight, grad.dtype)
    return grad_grad, None, None, None, None, None, [None] * ctx.num_then, None, None, None


def _expert_weight(ctx: Any, parts: list[Tensor]) -> tuple[Any, ...]:
    """Return the arguments of an operator that say which stacked weights it multiplies with."""
    payload, scale, global_scale, *then_state = parts
    return payload, scale, global_scale, ctx.weight_spec, then_state, ctx.then_spec, ctx.weight_dtype


for _name, _backward, _setup in (
    ("packed_linear", _packed_linear_backward, _setup_packed_linear),
    ("packed_expert_linear", _packed_expert_linear_backward, _setup_packed_expert_linear),
    ("packed_expert_linear_backward", _expert_backward_backward, _setup_expert_backward),
):
    register_autograd(f"octavo::{_name}", _backward, setup_context=_setup, lib=LIBRARY)
