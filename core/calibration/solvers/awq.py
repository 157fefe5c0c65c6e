"""AWQ's scales of weight columns, from statistics of the input alone (arXiv:2306.00978), by ModelOpt 0.47's rules.

ModelOpt runs the layer on all the data for each α. Its loss is ‖X · (Q(W·s)·(1/s) − W)ᵀ‖² with inputs that are not
quantized, which the Gram matrix XᵀX gives without running anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.calibration.solvers.output_error import (
    gram_error,
    output_error,
    rounded_input,
    rounded_weight,
)
from octavo.core.formats import PerBlock, QuantSpec

_SMALLEST, _LARGEST = 1e-4, 1e4


@dataclass(frozen=True, eq=False)
class AwqScale:
    """What a search chose.

    Attributes:
        alpha: Of the chosen scale.
        pre_quant_scale: fp32 [in], 1/s: what the input is multiplied with.
        errors: Squared output error of each α tried.
    """

    alpha: float
    pre_quant_scale: Tensor
    errors: dict[float, float]


def alphas(step: float = 0.1) -> list[float]:
    """Return the exponents from 0 to 1, rounded to fp32 as ModelOpt's are."""
    return [float(alpha) for alpha in torch.arange(0, 1.0 + step, step)]


def relative_columns(weight: Tensor, block: int | None) -> Tensor:
    """Return the mean over rows of |w| / amax of w's block, fp32 [in], computed in the weight's dtype.

    Args:
        weight: [out, in].
        block: Length of a block along a row; None for whole rows. A last block that is short is a block too.
    """
    magnitude = weight.abs()
    num_columns = weight.shape[1]
    if block is not None:
        padded = torch.nn.functional.pad(magnitude, (0, -num_columns % block))
        magnitude = padded.reshape(-1, block)
    relative = magnitude / (magnitude.amax(1, keepdim=True) + torch.finfo(weight.dtype).tiny)
    return relative.reshape(weight.shape[0], -1)[:, :num_columns].mean(0).float()


def awq_scale(act_mean: Tensor, columns: Tensor, alpha: float) -> Tensor:
    """Return s = act_mean^α / columns^(1−α), clamped to [1e-4, 1e4], over the root of its extremes' product.

    Args:
        act_mean: fp32 [in], mean over batches of the mean |x| of each channel.
        columns: fp32 [in], see `relative_columns`.
        alpha: 0 to 1.
    """
    tiny = torch.finfo(torch.float32).tiny
    scale = (act_mean.pow(alpha) / (columns.pow(1 - alpha) + tiny)).clamp(_SMALLEST, _LARGEST)
    return scale / (scale.max() * scale.min()).sqrt()


def scaled_rounding(weight: Tensor, scale: Tensor, spec: QuantSpec) -> Tensor:
    """Return what `weight` [out, in] becomes, fp32, if its columns are multiplied by `scale` [in] while rounded.

    As in ModelOpt's search, s and 1/s are each rounded to the weight's dtype, and so is the product.
    """
    dtype = weight.dtype
    rounded = rounded_weight(weight * scale.to(dtype), spec)
    return rounded.float() * (1 / scale).to(dtype).float()


def search_awq(
    weight: Tensor, act_mean: Tensor, gram: Tensor, spec: QuantSpec, tried: Sequence[float] | None = None
) -> AwqScale:
    """Return the scale with the least output error on all the data behind `gram` (ties: the first).

    Equals ModelOpt's search, which sums the mean squared error of each batch, where batches are of one size; with
    inputs in bf16 it also rounds x/s, which the Gram matrix does not see.

    Args:
        weight: [out, in], any float dtype.
        act_mean: fp32 [in], see `awq_scale`.
        gram: fp32 [in, in], XᵀX.
        spec: Format of the weight, not stacked; scales are the largest magnitudes.
        tried: Exponents, by default `alphas()`.
    """

    def error(scale: Tensor) -> float:
        return float(gram_error(scaled_rounding(weight, scale, spec) - weight.float(), gram))

    return _least(weight, act_mean, spec, tried, error)


def search_awq_on_tokens(
    weight: Tensor,
    act_mean: Tensor,
    held: Tensor,
    spec: QuantSpec,
    input_spec: QuantSpec,
    tried: Sequence[float] | None = None,
) -> AwqScale:
    """Return the scale with the least output error on held tokens that are rounded too, which ModelOpt's are not.

    Args:
        weight: [out, in], any float dtype.
        act_mean: fp32 [in], see `awq_scale`.
        held: [tokens, in], a sample of the inputs; its range after scaling is the input's.
        spec: Format of the weight, not stacked.
        input_spec: Format of the input (see `rounded_input`).
        tried: Exponents, by default `alphas()`.
    """
    held = held.float()
    target = held @ weight.float().T

    def error(scale: Tensor) -> float:
        x = held / scale
        rounded = rounded_weight(weight.float() * scale, spec)
        return output_error(rounded, rounded_input(x, x.abs().amax(), input_spec), target)

    return _least(weight, act_mean, spec, tried, error)


def _least(
    weight: Tensor,
    act_mean: Tensor,
    spec: QuantSpec,
    tried: Sequence[float] | None,
    error: Callable[[Tensor], float],
) -> AwqScale:
    columns = relative_columns(weight, block_length(spec))
    scales = {a: awq_scale(act_mean.float(), columns, a) for a in (alphas() if tried is None else tried)}
    errors = {alpha: error(scale) for alpha, scale in scales.items()}
    alpha = min(errors, key=errors.__getitem__)
    return AwqScale(alpha, 1.0 / scales[alpha], errors)


def block_length(spec: QuantSpec) -> int | None:
    """Return how many neighbours in a row share a scale; None if there are no blocks along rows."""
    granularity = spec.granularity
    return dict(granularity.sizes).get(-1) if isinstance(granularity, PerBlock) else None
