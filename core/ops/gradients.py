"""Gradients of the operators: straight through, with a range mask, recomputing what plain layers would save."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd

from octavo.core.formats import parse_chain
from octavo.core.ops import calls
from octavo.core.ops.schema import LIBRARY


def _can_saturate(spec: str) -> bool:
    return any(stage.state for stage in parse_chain(spec))


def _masked(grad: Tensor, x: Tensor, state: list[Tensor], spec: str, range_mask: bool) -> Tensor:
    if not (range_mask and _can_saturate(spec)):
        return grad
    masked: Tensor = torch.ops.octavo.fake_quantize_backward(grad, x, state, spec)
    return masked


def _quantized(x: Tensor, state: list[Tensor], spec: str) -> Tensor:
    return calls.fake_quantize(x, state, spec) if parse_chain(spec) else x


def _setup_fake_quantize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, state, spec, range_mask = inputs
    ctx.spec, ctx.num_state = spec, len(state)
    ctx.range_mask = range_mask and _can_saturate(spec)
    ctx.save_for_backward(*((x, *state) if ctx.range_mask else ()))


def _fake_quantize_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.range_mask:
        x, *state = ctx.saved_tensors
        grad = _masked(grad, x, state, ctx.spec, True)
    return grad, [None] * ctx.num_state, None, None


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, x_state, x_spec, weight_state, weight_spec, x_range_mask, weight_range_mask = inputs
    ctx.save_for_backward(x, weight, *x_state, *weight_state)
    ctx.num_x_state, ctx.num_weight_state = len(x_state), len(weight_state)
    ctx.x_spec, ctx.weight_spec = x_spec, weight_spec
    ctx.x_range_mask, ctx.weight_range_mask = x_range_mask, weight_range_mask
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, *state = ctx.saved_tensors
    x_state, weight_state = state[: ctx.num_x_state], state[ctx.num_x_state :]
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = grad @ _quantized(weight, weight_state, ctx.weight_spec).to(grad.dtype)
        grad_x = _masked(grad_x.to(x.dtype), x, x_state, ctx.x_spec, ctx.x_range_mask)
    rows = grad.reshape(-1, grad.shape[-1])
    if ctx.needs_input_grad[1]:
        x_rows = _quantized(x, x_state, ctx.x_spec).reshape(-1, x.shape[-1]).to(grad.dtype)
        grad_weight = (rows.t() @ x_rows).to(weight.dtype)
        grad_weight = _masked(grad_weight, weight, weight_state, ctx.weight_spec, ctx.weight_range_mask)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        grad_bias = rows.sum(0).to(ctx.bias_dtype)
    none_x, none_weight = [None] * ctx.num_x_state, [None] * ctx.num_weight_state
    return grad_x, grad_weight, grad_bias, none_x, None, none_weight, None, None, None


register_autograd(
    "octavo::fake_quantize", _fake_quantize_backward, setup_context=_setup_fake_quantize, lib=LIBRARY
)
register_autograd("octavo::fake_quantized_linear", _linear_backward, setup_context=_setup_linear, lib=LIBRARY)
