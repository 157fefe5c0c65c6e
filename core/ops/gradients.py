"""Gradients of the operators: straight through, with a range mask, recomputing what plain layers would save.

Calibrated state gets gradients where it asks for them (see `formats.state_gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd

from octavo.core.formats import parse_chain
from octavo.core.formats.hadamard import hadamard_transform
from octavo.core.ops.calls import operand
from octavo.core.ops.schema import LIBRARY


def has_mask(spec: str, range_mask: bool) -> bool:
    """Return whether gradients stop somewhere: only calibrated scales let values saturate."""
    return range_mask and any(stage.state for stage in parse_chain(spec))


def masked(grad: Tensor, x: Tensor, state: list[Tensor], spec: str) -> Tensor:
    """Return `grad`, zero where a value of `x` saturates."""
    result: Tensor = torch.ops.octavo.fake_quantize_backward(grad, x, state, spec)
    return result


def _state_grads(
    grad: Tensor, x: Tensor, state: list[Tensor], spec: str, wanted: Sequence[bool]
) -> list[Any]:
    """Return the gradients of the state tensors that want one; None for the others."""
    if not any(wanted):
        return [None] * len(wanted)
    grads = torch.ops.octavo.fake_quantize_state_backward(grad, x, state, spec)
    return [found if is_wanted else None for found, is_wanted in zip(grads, wanted, strict=True)]


def _setup_fake_quantize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, state, spec, range_mask = inputs
    ctx.spec, ctx.num_state = spec, len(state)
    ctx.has_mask = has_mask(spec, range_mask)
    keeps_x = ctx.has_mask or any(ctx.needs_input_grad[1 : 1 + len(state)])
    ctx.save_for_backward(*((x, *state) if keeps_x else ()))


def _fake_quantize_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: checkpointing unpacks them each time
    if not saved:
        return grad, [None] * ctx.num_state, None, None
    x, *state = saved
    grads = _state_grads(grad, x, state, ctx.spec, ctx.needs_input_grad[1])
    grad_x = masked(grad, x, state, ctx.spec) if ctx.has_mask and ctx.needs_input_grad[0] else grad
    return grad_x, grads, None, None


def _setup_rotated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.block, state, ctx.spec, range_mask = inputs
    ctx.num_state = len(state)
    ctx.has_mask = has_mask(ctx.spec, range_mask)
    ctx.save_for_backward(*((x, *state) if ctx.has_mask else ()))


def _rotated_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.has_mask:
        x, *state = ctx.saved_tensors
        grad = masked(grad, hadamard_transform(x, ctx.block), state, ctx.spec)
    # The matrix is symmetric: its transpose, which gradients are multiplied with, is itself.
    return hadamard_transform(grad, ctx.block), None, [None] * ctx.num_state, None, None


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
    ctx.num_x_state = len(x_state)
    ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
    # Each side is needed for the gradient of the other one, and for the mask of its own.
    x_grad, weight_grad = ctx.needs_input_grad[:2]
    first_weight_state = 4 + len(x_state)  # after x, weight, bias, the state of x and its spec
    learns_x_scales = any(ctx.needs_input_grad[3 : 3 + len(x_state)])
    learns_weight_scales = any(
        ctx.needs_input_grad[first_weight_state : first_weight_state + len(weight_state)]
    )
    keeps_x = weight_grad or (x_grad and ctx.has_x_mask) or learns_x_scales or learns_weight_scales
    keeps_weight = x_grad or (weight_grad and ctx.has_weight_mask) or learns_x_scales or learns_weight_scales
    ctx.save_for_backward(x if keeps_x else None, weight if keeps_weight else None, *x_state, *weight_state)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, *state = ctx.saved_tensors
    x_side = state[: ctx.num_x_state], ctx.x_spec
    weight_side = state[ctx.num_x_state :], ctx.weight_spec
    x_dtype, weight_dtype, bias_dtype = ctx.dtypes
    needs_x, needs_weight, needs_bias, needs_x_state, _, needs_weight_state, *_ = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = None
    x_state_grads: list[Any] = [None] * len(needs_x_state)
    weight_state_grads: list[Any] = [None] * len(needs_weight_state)
    if needs_x or any(needs_x_state):
        grad_x = (grad @ operand(weight, *weight_side, ctx.has_weight_mask).to(grad.dtype)).to(x_dtype)
        x_state_grads = _state_grads(grad_x, x, *x_side, needs_x_state)
        grad_x = masked(grad_x, x, *x_side) if ctx.has_x_mask and needs_x else grad_x
    rows = grad.reshape(-1, grad.shape[-1])
    if needs_weight or any(needs_weight_state):
        x_rows = operand(x, *x_side, ctx.has_x_mask).reshape(-1, x.shape[-1]).to(grad.dtype)
        grad_weight = (rows.t() @ x_rows).to(weight_dtype)
        weight_state_grads = _state_grads(grad_weight, weight, *weight_side, needs_weight_state)
        grad_weight = (
            masked(grad_weight, weight, *weight_side) if ctx.has_weight_mask and needs_weight else grad_weight
        )
    if needs_bias:
        grad_bias = rows.sum(0).to(bias_dtype)
    return grad_x, grad_weight, grad_bias, x_state_grads, None, weight_state_grads, None, None, None, None


register_autograd(
    "octavo::fake_quantize", _fake_quantize_backward, setup_context=_setup_fake_quantize, lib=LIBRARY
)
register_autograd("octavo::fake_quantize_backward", _mask_backward, setup_context=_setup_mask, lib=LIBRARY)
register_autograd(
    "octavo::rotated_fake_quantize", _rotated_backward, setup_context=_setup_rotated, lib=LIBRARY
)
register_autograd("octavo::fake_quantized_linear", _linear_backward, setup_context=_setup_linear, lib=LIBRARY)
