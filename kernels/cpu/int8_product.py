"""Products of int8 codes of x with int8 codes of a weight, whose sums are exact integers; scales come afterwards.

The reference rounds the values of both sides to their dtype, and sums their products in floating point. Here neither is
rounded: the result differs from the reference's by what the reference errs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.formats import PerChannel, PerTensor, PerToken, Quantized, QuantSpec, parse_chain

# 128 · 128 · this many products fit an int32.
_MOST_PRODUCTS = 2**17 - 1
_INTEGERS = ("int8", "int8_narrow")


def multiplies_exactly(x_spec: str, weight_spec: str, in_features: int) -> bool:
    """Return whether chains of formats of x and of a weight are ones that `int8_product` takes."""
    chain, (weight,) = parse_chain(x_spec), parse_chain(weight_spec)
    if len(chain) != 1 or in_features > _MOST_PRODUCTS:
        return False
    (x,) = chain
    x_is_whole = isinstance(x.granularity, PerTensor) and not x.dynamic
    x_by_row = isinstance(x.granularity, PerToken) and x.dynamic
    return (x_is_whole or x_by_row) and _is_int8(x) and _is_int8(weight) and _by_row(weight)


def int8_product(
    x: Tensor, x_state: Sequence[Tensor], x_spec: str, bias: Tensor | None, weight: Quantized
) -> Tensor:
    """Return the product, fp32 [rows, out_features].

    Args:
        x: Float [rows, in_features]. A row with NaN has a result of NaN.
        x_state: Its calibrated tensors.
        x_spec: Its chain of formats, which with the weight's `multiplies_exactly`.
        bias: [out_features], or None.
        weight: Codes [out_features, in_features] and scales [out_features] or [].
    """
    codes, scale = torch.ops.octavo.quantize(x, x_state, x_spec)
    sums = torch._int_mm(codes.view(torch.int8), weight.payload.view(torch.int8).t())
    x_scale = scale.unsqueeze(-1) if scale.dim() else scale
    result = sums.float().mul_(x_scale).mul_(weight.scale)
    if bias is not None:
        result += bias.float()
    return result.masked_fill_(x.isnan().any(-1, keepdim=True), torch.nan)


def _is_int8(spec: QuantSpec) -> bool:
    return spec.element in _INTEGERS and spec.scale == "float32"


def _by_row(spec: QuantSpec) -> bool:
    where = spec.granularity
    return isinstance(where, PerTensor | PerToken) or (
        isinstance(where, PerChannel) and where.axis in (0, -2)
    )
