"""AWQ's scales of weight columns, from statistics of the input alone (arXiv:2306.00978), by ModelOpt 0.47's rules.

ModelOpt runs the layer on all the data for each α. Its loss is ‖X · (Q(W·s)·(1/s) − W)ᵀ‖² with inputs that are not
quantized, which XᵀX gives without running anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.calibration.solvers.input_product import InputProduct
from octavo.core.calibration.solvers.nearest import rounded_weight, rounds_rows_alone
from octavo.core.calibration.solvers.row_race import race
from octavo.core.formats import PerBlock, QuantSpec

_SMALLEST, _LARGEST = 1e-4, 1e4


@dataclass(frozen=True, eq=False)
class AwqScale:
    """What a search chose.

    Attributes:
        alpha: Of the chosen scale.
        pre_quant_scale: fp32 [in], 1/s: what the input is multiplied with.
        errors: Squared output error of each α tried; estimated for those that some of the rows decided.
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
    relative = magnitude.div_(magnitude.amax(1, keepdim=True) + torch.finfo(weight.dtype).tiny)
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


class ScaledRounding:
    """What a weight becomes if its columns are multiplied by a scale while they are rounded.

    As in ModelOpt's search, s and 1/s are each rounded to the weight's dtype, and so is the product.

    Args:
        weight: [out, in], any float dtype.
        spec: Its format, not stacked; scales are the largest magnitudes.
        scale: fp32 [in].
        loudest: [in], the largest magnitude of each column, where the format has a second-level scale.
    """

    def __init__(self, weight: Tensor, spec: QuantSpec, scale: Tensor, loudest: Tensor | None) -> None:
        self._weight, self._spec = weight, spec
        self._scale, self._inverse = scale.to(weight.dtype), (1 / scale).to(weight.dtype).float()
        # Products keep the order of their factors when they are rounded.
        self._global_amax = None if loudest is None else (loudest * self._scale).amax().float()

    def change(self, rows: Tensor | None = None) -> Tensor:
        """Return by how much the rows `rows`, int64 [n], change, fp32 [n, in]; all of them by default."""
        weight = self._weight if rows is None else self._weight[rows]
        rounded = rounded_weight(weight * self._scale, self._spec, self._global_amax)
        return rounded.float().mul_(self._inverse).sub_(weight.float())


def search_awq(
    weight: Tensor,
    act_mean: Tensor,
    product: InputProduct,
    spec: QuantSpec,
    tried: Sequence[float] | None = None,
) -> AwqScale:
    """Return the scale with the least output error on all the data behind `product` (ties: the first).

    Equals ModelOpt's search, which sums the mean squared error of each batch, where batches are of one size; with
    inputs in bf16 it also rounds x/s, which XᵀX does not see. Exponents are compared on as many output channels as
    leave no doubt (`race`).

    Args:
        weight: [out, in], any float dtype.
        act_mean: fp32 [in], see `awq_scale`.
        product: XᵀX of the input.
        spec: Format of the weight, not stacked; scales are the largest magnitudes.
        tried: Exponents, by default `alphas()`.
    """
    columns = relative_columns(weight, block_length(spec))
    scales = {a: awq_scale(act_mean.float(), columns, a) for a in (alphas() if tried is None else tried)}
    loudest = None if spec.global_max is None else torch.maximum(weight.amax(0), -weight.amin(0))
    candidates = [ScaledRounding(weight, spec, scale, loudest) for scale in scales.values()]
    if rounds_rows_alone(spec):
        magnitudes = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
        best, errors = race(
            len(candidates), magnitudes, lambda i, rows: product.errors(candidates[i].change(rows))
        )
    else:
        errors = [float(product.errors(candidate.change()).sum()) for candidate in candidates]
        best = errors.index(min(errors))
    alpha = list(scales)[best]
    return AwqScale(alpha, 1.0 / scales[alpha], dict(zip(scales, errors, strict=True)))


def block_length(spec: QuantSpec) -> int | None:
    """Return how many neighbours in a row share a scale; None if there are no blocks along rows."""
    granularity = spec.granularity
    return dict(granularity.sizes).get(-1) if isinstance(granularity, PerBlock) else None
