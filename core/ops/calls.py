"""Typed Python entry points to the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from octavo.core.formats import Quantized, QuantSpec, chain_key
from octavo.core.ops.direct import call

NOTHING = chain_key([])


def amax(x: Tensor, spec: QuantSpec) -> Tensor:
    """Return the largest magnitude of each block of `x`; see `formats.compute_amax`."""
    return cast(Tensor, torch.ops.octavo.amax(x, spec.key))


def fake_quantize(x: Tensor, state: Sequence[Tensor], spec_key: str, range_mask: bool = True) -> Tensor:
    """Fake-quantize `x` by a chain of specs; see `formats.fake_quantize`.

    Args:
        x: Any float dtype, any shape.
        state: Calibrated tensors of all specs in turn, fp32.
        spec_key: `QuantSpec.key`, or `formats.chain_key` of several specs.
        range_mask: Stop the gradient where a value saturates.

    Raises:
        ShapeError: `state` has more or fewer tensors than the specs take.
        UnsupportedError: `state` is on the meta device and `x` is not.
    """
    return cast(Tensor, torch.ops.octavo.fake_quantize(x, state, spec_key, range_mask))


def operand(x: Tensor, state: Sequence[Tensor], spec_key: str, range_mask: bool = True) -> Tensor:
    """Return `fake_quantize(x, …)`, or for an empty chain `x` itself, strides and all."""
    return fake_quantize(x, state, spec_key, range_mask) if spec_key != NOTHING else x


def rotated_fake_quantize(
    x: Tensor, block: int, state: Sequence[Tensor], spec_key: str, range_mask: bool = True
) -> Tensor:
    """Return `fake_quantize(hadamard_transform(x, block), …)`; see `formats.hadamard`.

    Args:
        x: Any float dtype, [..., length].
        block: Length of the blocks that are transformed, a power of two that divides the last dim.
        state: As in `fake_quantize`.
        spec_key: As in `fake_quantize`.
        range_mask: As in `fake_quantize`.
    """
    return cast(Tensor, torch.ops.octavo.rotated_fake_quantize(x, block, state, spec_key, range_mask))


def fake_quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_state: Sequence[Tensor],
    x_spec: str,
    weight_state: Sequence[Tensor],
    weight_spec: str,
    x_range_mask: bool = True,
    weight_range_mask: bool = True,
) -> Tensor:
    """Return `linear(fake_quantize(x), fake_quantize(weight), bias)`; an empty chain leaves its side as it is.

    Backward keeps the states and what it needs of `x` and `weight`, and recomputes the quantized copies. Under
    autocast, values are quantized in their own dtype and multiplied in autocast's.

    Args:
        x: Any float dtype, [..., in_features].
        weight: [out_features, in_features].
        bias: [out_features], or None.
        x_state: Calibrated tensors of `x`, as in `fake_quantize`.
        x_spec: Chain of specs of `x`.
        weight_state: Calibrated tensors of `weight`.
        weight_spec: Chain of specs of `weight`.
        x_range_mask: Stop the gradient of `x` where a value saturates.
        weight_range_mask: Stop the gradient of `weight` where a value saturates.

    Returns:
        [..., out_features].

    Raises:
        ShapeError, UnsupportedError: as in `fake_quantize`.
    """
    if x_spec == weight_spec == NOTHING and not (x_state or weight_state):
        return linear(x, weight, bias)  # as while calibrating: nothing to keep opaque
    sides = (x_state, x_spec, weight_state, weight_spec, x_range_mask, weight_range_mask)
    return cast(Tensor, torch.ops.octavo.fake_quantized_linear(x, weight, bias, *sides, _autocast_dtype(x)))


def quantize(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Quantized:
    """Return packed codes and scales of `x`; see `formats.quantize`."""
    payload, scale, *rest = torch.ops.octavo.quantize(x, state, spec.key)
    return Quantized(payload, scale, rest[0] if rest else None)


def dequantize(quantized: Quantized, spec: QuantSpec, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the values that `quantized` stands for; see `formats.dequantize`."""
    return cast(Tensor, torch.ops.octavo.dequantize(*quantized, spec.key, shape, dtype))


def squared_error(x: Tensor, quantized: Quantized, spec: QuantSpec) -> Tensor:
    """Return the sums of squares of `x` and of the errors of its codes; see `formats.squared_error.run_sums`."""
    return cast(Tensor, torch.ops.octavo.squared_error(x, *quantized, spec.key))


def packed_linear(
    x: Tensor,
    bias: Tensor | None,
    weight: Quantized,
    weight_spec: QuantSpec,
    weight_dtype: torch.dtype,
    x_state: Sequence[Tensor] = (),
    x_spec: str = NOTHING,
    then_state: Sequence[Tensor] = (),
    then_spec: str = NOTHING,
    x_range_mask: bool = True,
) -> Tensor:
    """Return `linear(fake_quantize(x), weight, bias)` of a packed weight, which is never there as a whole in a kernel.

    Gradients reach `x` and `bias`. Autocast as in `fake_quantized_linear`. Where `x` has another dtype than the weight,
    because something cast the model's parameters (FSDP2's or DeepSpeed's mixed precision, `.to(dtype)`) and codes stay
    codes, the weight's values are cast to that of `x`, as a dense parameter would have been.

    Args:
        x: Any float dtype, [..., in_features].
        bias: [out_features], or None.
        weight: Codes and scales of [out_features, in_features].
        weight_spec: Their format.
        weight_dtype: Dtype in which the weight's values are rounded.
        x_state: Calibrated tensors of `x`, as in `fake_quantize`.
        x_spec: Chain of specs of `x`.
        then_state: Calibrated tensors of `then_spec`.
        then_spec: Chain of specs by which the weight's values are rounded once more.
        x_range_mask: Stop the gradient of `x` where a value saturates.

    Returns:
        [..., out_features].

    Raises:
        ShapeError: shapes or dtypes do not fit.
        UnsupportedError: tensors are on several devices.
    """
    sides = (x_state, x_spec, *weight, weight_spec.key, then_state, then_spec, weight_dtype, x_range_mask)
    is_cast = x.is_floating_point() and x.dtype != weight_dtype
    dtype = _autocast_dtype(x) or (x.dtype if is_cast else None)
    return cast(Tensor, call("packed_linear", (x, bias, *x_state, *weight), (x, bias, *sides, dtype)))


def packed_expert_linear(
    x: Tensor,
    expert: Tensor,
    bias: Tensor | None,
    weight: Quantized,
    weight_spec: QuantSpec,
    weight_dtype: torch.dtype,
    then_state: Sequence[Tensor] = (),
    then_spec: str = NOTHING,
) -> Tensor:
    """Return `linear(x[i], weight[expert[i]], bias[expert[i]])` for each row i, of packed stacked weights.

    Args:
        x: Any float dtype, [rows, in_features].
        expert: int64 [rows]: the weight of each row.
        bias: [experts, out_features], or None.
        weight: Codes and scales of [experts, out_features, in_features].
        weight_spec: Their format, stacked.
        weight_dtype: Dtype in which the weights' values are rounded.
        then_state: Calibrated tensors of `then_spec`, stacked.
        then_spec: Chain of specs by which the values are rounded once more, stacked.

    Returns:
        [rows, out_features]; gradients reach `x` and `bias`. Autocast as in `fake_quantized_linear`.

    Raises:
        ShapeError: shapes or dtypes do not fit, or there is no such expert.
        UnsupportedError: tensors are on several devices.
    """
    sides = (*weight, weight_spec.key, then_state, then_spec, weight_dtype, _autocast_dtype(x))
    return cast(Tensor, torch.ops.octavo.packed_expert_linear(x, expert, bias, *sides))


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast multiplies `x` in; None outside of it and for float64, which it leaves alone."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
