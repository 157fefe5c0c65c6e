"""Typed Python entry points to the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from octavo.core.formats import Quantized, QuantSpec


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
    """
    return cast(Tensor, torch.ops.octavo.fake_quantize(x, state, spec_key, range_mask))


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

    Backward keeps `x`, `weight` and the states, and recomputes the quantized copies.
    """
    return cast(
        Tensor,
        torch.ops.octavo.fake_quantized_linear(
            x, weight, bias, x_state, x_spec, weight_state, weight_spec, x_range_mask, weight_range_mask
        ),
    )


def quantize(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Quantized:
    """Return packed codes and scales of `x`; see `formats.quantize`."""
    payload, scale, *rest = torch.ops.octavo.quantize(x, state, spec.key)
    return Quantized(payload, scale, rest[0] if rest else None)


def dequantize(quantized: Quantized, spec: QuantSpec, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the values that `quantized` stands for; see `formats.dequantize`."""
    return cast(Tensor, torch.ops.octavo.dequantize(*quantized, spec.key, shape, dtype))
