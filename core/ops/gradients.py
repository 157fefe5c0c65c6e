"""Gradients of the operators: straight through, with a range mask, recomputing what plain layers would save."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd

from octavo.core.formats import parse_chain
from octavo.core.ops.calls import operand
from octavo.core.ops.schema import LIBRARY


def has_mask(spec: str, range_mask: bool) -> bool:
    """Return whether gradients stop somewhere: only calibrated scales let values saturate."""
    return range_mask and any(stage.state for stage in parse_chain(spec))


def masked(grad: Tensor, x: Tensor, state: list[Tensor], spec: str) -> Tensor:
    """Return `grad`, zero where a value of `x` saturates."""
    result: Tensor = torch.ops.octavo.fake_quantize_backward(grad, x, state, spec)
    return result


def _setup_fake_quantize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, state, spec, range_mask = inputs
    ctx.spec, ctx.num_state = spec, len(state)
    ctx.has_mask = has_mask(spec, range_mask)
    ctx.save_for_backward(*((x, *state) if ctx.has_mask else ()))


def _fake_quantize_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.has_mask:
        x, *state = ctx.saved_tensors
        grad = masked(grad, x, state, ctx.spec)
    return grad, [None] * ctx.num_state, None, None


def _setup_mask(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, state, ctx.spec = inputs
    ctx.num_state = len(state)
    ctx.save_for_backward(x, *state)


def _mask_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *state = ctx.saved_tensors
    return masked(grad, x, state, ctx.spec), None, [None] * ctx.num_state, None


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, x_state, x_spec, weight_state, weight_spec, x_range_mask, weight_range_mask, _ = inputs
    ctx.x_spec, ctx.weight_spec = x_spec, weight_spec
    ctx.has_x_mask = has_mask(x_spec, x_range_mask)
    ctx.has_weight_mask = has_mask(weight_spec, weight_range_mask)
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
        grad_x = masked(grad_x, x, *x_side) if ctx.has_x_mask else grad_x
    rows = grad.reshape(-1, grad.shape[-1])
    if ctx.needs_input_grad[1]:
        x_rows = operand(x, *x_side, ctx.has_x_mask).reshape(-1, x.shape[-1]).to(grad.dtype)
        grad_weight = (rows.t() @ x_rows).to(weight_dtype)
        grad_weight = masked(grad_weight, weight, *weight_side) if ctx.has_weight_mask else grad_weight
    if ctx.needs_input_grad[2]:
        grad_bias = rows.sum(0).to(bias_dtype)
    none_x, none_weight = [None] * ctx.num_x_state, [None] * ctx.num_weight_state
    return grad_x, grad_weight, grad_bias, none_x, None, none_weight, None, None, None, None


register_autograd(
    "octavo::fake_quantize", _fake_quantize_backward, setup_context=_setup_fake_quantize, lib=LIBRARY
)
register_autograd("octavo::fake_quantize_backward", _mask_backward, setup_context=_setup_mask, lib=LIBRARY)
register_autograd("octavo::fake_quantized_linear", _linear_backward, setup_context=_setup_linear, lib=LIBRARY)
