"""The range of a weight's static scales: of several largest magnitudes, the one with the least error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import Grid
from octavo.core.calibration.solvers.objective import block_length, diagonal_blocks
from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import E4M3_MAX, beside

# Multiples of the largest magnitude that are worth trying, by measurement on small trained models.
_SHRINK = (0.45, 1.05, 25)
_NVFP4 = (0.55, 1.8, 26)
_EXPONENTS = (0.5, 2.0)


def amax_candidates(
    amax: Tensor, spec: QuantSpec, multiples: Iterable[float] | None = None
) -> Iterator[Tensor]:
    """Yield values of `amax` to try, the largest magnitude itself first.

    Args:
        amax: Largest magnitudes, fp32, any shape.
        spec: The format. Signed integers with one more code below zero are tried with negative scales too, which
            give that code to the positive values. With two-level scales, multiples reach up to 1.8: a value that
            is less than the largest code is often nearer to the grid there (four-over-six is the multiple 1.5).
            Powers of two are tried one exponent down and up.
        multiples: Instead of the format's own.
    """
    yield amax
    two_sided = spec.scale == "float32" and -spec.element_type.min > spec.element_type.max
    if two_sided:
        yield -amax
    for multiple in _default_multiples(spec) if multiples is None else multiples:
        if multiple != 1:
            yield amax * multiple
            if two_sided:
                yield -amax * multiple


def all_e4m3_candidates(amax: Tensor, global_amax: Tensor) -> Iterator[Tensor]:
    """Yield the `amax` of each of the 126 positive e4m3 block scales, as ModelOpt's FP8 sweep tries them."""
    codes = torch.arange(1, 127, dtype=torch.uint8, device=amax.device)
    for scale in codes.view(torch.float8_e4m3fn).float() / E4M3_MAX:
        yield (beside(global_amax, amax) * scale).expand_as(amax)


@torch.no_grad()
def search_amax(
    weight: Tensor,
    state: Mapping[str, Tensor],
    spec: QuantSpec,
    candidates: Iterable[Tensor],
    *,
    diagonal: Tensor | None = None,
    gram: Tensor | None = None,
    power: float = 2.0,
) -> Tensor:
    """Return the `amax` with which rounding to nearest does least harm, each scale chosen alone (ties: the first).

    Args:
        weight: fp32 [out, in].
        state: Calibrated tensors; `amax` gives the shape, others stay.
        spec: A format with static scales, not stacked.
        candidates: Values of `amax`.
        diagonal: Mean x^2 of each input channel, fp32 [in]: weights the squared errors. Default: all alike.
        gram: X^T·X, fp32 [in, in], instead of it: the output error of each block of columns, the others exact.
        power: Exponent of the errors where there is no `gram`. 0.7 is the measure of HQQ (Badri & Shaji 2023), which
            forgives outliers; where a scale is all there is to choose, trying is surer than its alternation.
    """
    measure = _measure(spec, weight, diagonal, gram, power)
    best = state["amax"]
    least = torch.full_like(best, torch.inf)
    for amax in candidates:
        change = (
            Grid.of({**state, "amax": amax}, spec, (weight.shape[0], weight.shape[1])).round(weight) - weight
        )
        error = _sum_by_scale(measure(change), spec)
        best = torch.where(error < least, amax, best)
        least = torch.minimum(error, least)
    return best


def _default_multiples(spec: QuantSpec) -> list[float]:
    if spec.scale == "e8m0":
        return list(_EXPONENTS)
    low, high, count = _NVFP4 if spec.scale == "e4m3" else _SHRINK
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def _measure(
    spec: QuantSpec, weight: Tensor, diagonal: Tensor | None, gram: Tensor | None, power: float
) -> Callable[[Tensor], Tensor]:
    """Return what takes the change of a weight [out, in] to its elements' shares in the error."""
    if gram is None:
        weights = 1.0 if diagonal is None else diagonal
        return lambda change: change.abs().pow(power) * weights
    length = block_length(spec, weight.shape[1])
    blocks = diagonal_blocks(gram, length)

    def local(change: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(change, (0, -change.shape[1] % length))
        by_block = padded.reshape(len(change), -1, length).transpose(0, 1)
        slopes = (by_block @ blocks).transpose(0, 1).reshape(padded.shape)
        return change * slopes[:, : change.shape[1]]

    return local


def _sum_by_scale(error: Tensor, spec: QuantSpec) -> Tensor:
    blocked = spec.granularity.blocked(error)
    dims = spec.granularity.reduced_dims(error.dim())
    return (blocked.sum(dims) if dims else blocked).reshape(spec.granularity.scale_shape(error.shape))
