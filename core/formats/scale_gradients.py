"""The gradients of calibrated state: how a loss changes with the `amax` that scales are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.formats.quantization import RANGE_SLACK, compute_amax, in_range, to_steps
from octavo.core.formats.rounding import round_to_grid
from octavo.core.formats.scales import E4M3_MAX, E4M3_SMALLEST, SMALLEST_AMAX, beside, scales_from_amax
from octavo.core.formats.spec import QuantSpec


def state_gradients(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> list[Tensor]:
    """Return the gradient of each calibrated tensor of `fake_quantize(x, state, spec)`.

    Learned step size quantization (LSQ, Esser et al., arXiv:1902.08153): a value that is rounded changes with its
    step by ``code - x / step``, one that saturates by its code; rounding passes gradients straight through. The same
    rule takes the gradient through the rounding of E4M3 block scales: from the step to the block's `amax`, and to the
    tensor's `global_amax`. An `amax` whose scale is a constant, that of a block of zeros or of a scale at the end of
    E4M3's range, gets none.

    Args:
        grad: Of the quantized values, shape of `x`.
        x: What was quantized, any float dtype.
        state: Calibrated tensors, fp32, in the order of `spec.state`.
        spec: The format; its scales are float32 or E4M3.

    Returns:
        fp32 tensors of the shapes of `state`, in its order.
    """
    named = dict(zip(spec.state, state, strict=True))
    if not named:
        return []
    amax = compute_amax(x, spec) if spec.dynamic else named["amax"]
    global_amax = named.get("global_amax")
    scales = scales_from_amax(amax, global_amax, spec)
    grad_step = _step_gradient(grad, x, state, spec).reshape(scales.step.shape)
    if global_amax is None or scales.global_scale is None:
        return [_where_scaled(grad_step, amax, spec)]
    global_scale = beside(scales.global_scale, amax)
    ratio = amax / (spec.element_type.max * global_scale)
    is_free = (ratio >= E4M3_SMALLEST) & (ratio <= E4M3_MAX * RANGE_SLACK)
    grads = {"amax": torch.where(is_free, grad_step / spec.element_type.max, 0.0)}
    grad_global_scale = grad_step * (scales.step / global_scale - torch.where(is_free, ratio, 0.0))
    dims = tuple(range(global_amax.dim(), amax.dim()))
    total = grad_global_scale.sum(dims) if dims else grad_global_scale
    grads["global_amax"] = torch.where(global_amax < SMALLEST_AMAX, 0.0, total / (spec.global_max or 1.0))
    return [grads[name] for name in spec.state]


def _step_gradient(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Tensor:
    """Return the gradient of each block's step, fp32, before it is given the shape of the scales."""
    blocked = spec.granularity.blocked
    steps, _ = to_steps(x, state, spec)
    codes = round_to_grid(steps, spec.element_type, spec.ties)
    inside = blocked(in_range(x, state, spec))
    changes = blocked(grad).float() * (codes - torch.where(inside, steps, 0.0))
    dims = spec.granularity.reduced_dims(x.dim())
    return changes.sum(dims) if dims else changes


def _where_scaled(grad_step: Tensor, amax: Tensor, spec: QuantSpec) -> Tensor:
    """Return the gradient of `amax` where ``step = amax / largest code``."""
    return torch.where(amax.abs() < SMALLEST_AMAX, 0.0, grad_step / spec.element_type.max)
