"""Static ranges of activations: the amax of an input, from what was seen of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.calibration.solvers.nearest import rounded_input
from octavo.core.errors import ConfigError
from octavo.core.formats import QuantSpec

RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)

# Histograms of log2(block amax), as ModelOpt 0.47 keeps them.
NUM_BINS, LOG2_MIN, LOG2_MAX = 512, -40.0, 40.0
_SMALLEST_PART = 1e6
_E4M3_NORMAL_RANGE = 448 / 2.0**-6


def moving_average_amax(lows: Sequence[float], highs: Sequence[float], constant: float = 0.01) -> float:
    """Return llm-compressor's range: of moving averages of each batch's extremes, in the order of batches.

    Each batch moves them by `constant` of the way, from those of the first. The result depends on the order.

    Raises:
        ConfigError: there are no batches.
    """
    if not lows:
        raise ConfigError("a moving average of no batches; expected the extremes of at least one")
    low, high = lows[0], highs[0]
    for next_low, next_high in zip(lows[1:], highs[1:], strict=True):
        low += constant * (next_low - low)
        high += constant * (next_high - high)
    return max(abs(low), abs(high))


def search_amax(
    held: Tensor,
    amax: Tensor,
    spec: QuantSpec,
    weight_gram: Tensor | None = None,
    ratios: Sequence[float] = RATIOS,
) -> Tensor:
    """Return the range, fp32 [], with the least error of rounding held tokens (ties: the first tried).

    Serves ranges of whole tensors (INT8, FP8) and the range behind NVFP4's global scale alike.

    Args:
        held: [tokens, in], a sample of the inputs.
        amax: fp32 [], the largest magnitude over all the calibration data.
        spec: Format of the input (see `rounded_input`); one without a calibrated range has no error to gain.
        weight_gram: fp32 [in, in], WᵀW of all weights that read the input: then it is their output's error.
        ratios: Parts of `amax` that are tried; above 1 leaves headroom.
    """
    held = held.float()
    best, least = amax.float(), torch.inf
    for ratio in ratios:
        error = rounded_input(held, amax.float() * ratio, spec) - held
        weighted = error if weight_gram is None else error @ weight_gram
        total = float((weighted * error).double().sum())
        if total < least:
            best, least = amax.float() * ratio, total
    return best


def block_amax_counts(x: Tensor, block: int = 16) -> Tensor:
    """Return how many blocks of `x` [..., in] have their largest magnitude in each bin, int64 [512]; zeros in none.

    Counts of batches may be added up. Bins are equal parts of log2 from 2^-40 to 2^40; the outer ones take the rest.
    """
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % block))
    largest = padded.reshape(-1, block).abs().amax(1).float()
    return torch.bincount(_bin(largest[largest > 0].log2()), minlength=NUM_BINS)


def headroom_amax(
    counts: Tensor,
    amax: float,
    anchor_percentile: float = 1.0,
    upper_percentile: float = 99.99,
    rho: float = 16384.0,
) -> float:
    """Return the range behind NVFP4's global scale with headroom above, as ModelOpt 0.47's `nvfp4_act_headroom`.

    It is `rho` times a low percentile of block maxima, and at least the upper percentile. The low percentile leaves
    out blocks below a millionth of the upper one. Percentiles are centers of bins. Without blocks that are not
    zero, `amax` is returned.

    Args:
        counts: int64 [512], see `block_amax_counts`.
        amax: The largest magnitude that was seen; used as the upper percentile 100.
        anchor_percentile: Above 0, at most 100.
        upper_percentile: Above 0, at most 100.
        rho: Above 0, below 28672, the range of E4M3's normal numbers.

    Raises:
        ConfigError: an option is out of its range.
    """
    for name, value in (("anchor_percentile", anchor_percentile), ("upper_percentile", upper_percentile)):
        if not 0 < value <= 100:
            raise ConfigError(f"{name}={value}: must be above 0 and at most 100")
    if not 0 < rho < _E4M3_NORMAL_RANGE:
        raise ConfigError(f"rho={rho}: must be above 0 and below {_E4M3_NORMAL_RANGE:g}")
    if not counts.any():
        return amax
    upper = amax if upper_percentile >= 100 else _percentile(counts, upper_percentile)
    floor = int(_bin(torch.tensor(upper / _SMALLEST_PART).log2()))
    anchor = _percentile(torch.cat([torch.zeros_like(counts[:floor]), counts[floor:]]), anchor_percentile)
    return max(rho * anchor, upper)


def _bin(log2: Tensor) -> Tensor:
    part = (log2 - LOG2_MIN) / (LOG2_MAX - LOG2_MIN)
    return (part * NUM_BINS).floor().long().clamp(0, NUM_BINS - 1)


def _percentile(counts: Tensor, percentile: float) -> float:
    cumulative = counts.float().cumsum(0)
    found = torch.searchsorted(cumulative, percentile / 100 * cumulative[-1])
    index = min(int(found), NUM_BINS - 1)
    return float(2.0 ** (LOG2_MIN + (index + 0.5) / NUM_BINS * (LOG2_MAX - LOG2_MIN)))
