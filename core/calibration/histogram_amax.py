"""The amax that clips a histogram best: by entropy, percentile or squared error.

Every function takes counts as float64 [n] of n bins of equal width from 0, of which the last is not empty, and
returns how many of them the clipped range keeps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.core.formats import PerChannel, QuantSpec, fake_quantize
from octavo.core.quantizers import Calibrator

# Searches keep at least so many bins; fewer than the levels of a format say nothing about its rounding.
_FEWEST_KEPT = 128
_MOST_MSE_CANDIDATES = 1024
_MSE_CANDIDATES_AT_ONCE = 128


def amax_of(counts: Tensor, width: float, spec: QuantSpec, calibrator: Calibrator) -> float:
    """Return the upper edge of the range that `calibrator` keeps, or infinity when that is all of it.

    Args:
        counts: float64 [n], values in each bin of magnitude [i, i + 1) · width.
        width: Of a bin.
        spec: The format that rounds the kept range: per tensor, one level.
        calibrator: The method, other than `max`.
    """
    occupied = counts.nonzero()
    counts = counts[: int(occupied[-1]) + 1]
    match calibrator.method:
        case "percentile":
            kept = percentile_bins(counts, calibrator.percentile)
        case "entropy":
            kept = entropy_bins(counts, int(spec.element_type.max) + 1)
        case _:
            kept = mse_bins(counts, width, spec)
    return kept * width if kept < counts.numel() else float("inf")


def percentile_bins(counts: Tensor, percentile: float) -> int:
    """Return the fewest bins that hold `percentile` per cent of the values."""
    cumulative = counts.cumsum(0)
    return int(torch.searchsorted(cumulative, cumulative[-1] * (percentile / 100))) + 1


def entropy_bins(counts: Tensor, num_levels: int) -> int:
    """Return the range whose quantized distribution diverges least from the clipped one (ties: the largest).

    For a range of i bins, P is the histogram with all clipped values in bin i − 1; Q spreads the values of each of
    the `num_levels` equal parts evenly over its occupied bins. The measure is KL(P ‖ Q). The count of bin 0 is
    replaced by that of bin 1: zeros are exact in every range.
    """
    num_bins, fewest = counts.numel(), max(_FEWEST_KEPT, num_levels)
    if num_bins <= fewest:
        return num_bins
    counts = torch.cat([counts[1:2], counts[1:]])
    kept = torch.arange(fewest, num_bins + 1)
    # All sums over bins are differences of running sums, at the first bin of each level: [candidates, levels + 1].
    edges = (kept[:, None] * torch.arange(num_levels + 1) + num_levels - 1) // num_levels
    running = _running_sum(counts)
    in_level = running[edges].diff()
    occupied = _running_sum((counts > 0).double())[edges].diff()
    mean = in_level / occupied.clamp(min=1)

    total, inside, last = running[-1], running[kept], counts[kept - 1]
    clipped = total - inside
    p_log_p = _running_sum(torch.xlogy(counts, counts))[kept - 1] + torch.xlogy(
        last + clipped, last + clipped
    )
    p_log_q = torch.xlogy(in_level, mean).sum(1) + torch.xlogy(clipped, mean[:, -1])
    divergence = (p_log_p - p_log_q) / total + (inside / total).log()
    divergence[(last == 0) & (clipped > 0)] = torch.inf  # Q has nothing where P has the clipped values
    best = kept.numel() - 1 - int(divergence.flip(0).argmin())
    return int(kept[best])


def mse_bins(counts: Tensor, width: float, spec: QuantSpec) -> int:
    """Return the range with the least squared error of clipping and rounding, bins standing for their centers."""
    num_bins = counts.numel()
    step = -(-num_bins // _MOST_MSE_CANDIDATES)
    kept = torch.arange(num_bins, min(_FEWEST_KEPT, num_bins) - 1, -step)
    centers = (torch.arange(num_bins) + 0.5) * width
    row_spec = replace(spec, granularity=PerChannel(0))
    errors = []
    for some in torch.split(kept, _MSE_CANDIDATES_AT_ONCE):
        rows = centers.float().expand(some.numel(), -1)
        rounded = fake_quantize(rows, [(some * width).float()], row_spec)
        errors.append((rounded - rows).double().square() @ counts)
    return int(kept[torch.cat(errors).argmin()])


def _running_sum(values: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, …, n values."""
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))
