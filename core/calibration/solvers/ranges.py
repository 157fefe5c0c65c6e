"""The range of a weight's static scales: of several largest magnitudes, the one with the least error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import Grid
from octavo.core.calibration.solvers.objective import block_length, diagonal_blocks
from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import E4M3_MAX, beside

# Multiples of the largest magnitude that are worth trying, by measurement on small trained models.
_EXPONENTS = (1.0, 0.5, 2.0)
_NVFP4 = (1.0, 0.6, 0.66, 0.72, 0.78, 0.84, 0.9, 0.95, 1.06, 1.12, 1.2, 1.28, 1.36, 1.44, 1.5, 1.6, 1.7, 1.8)
_FEW_BITS = (1.0, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_MANY_BITS = (1.0, 0.8, 0.825, 0.85, 0.875, 0.9, 0.925, 0.95, 0.975)


def amax_multiples(spec: QuantSpec) -> list[float]:
    """Return the multiples of the largest magnitude that are worth trying, 1 first.

    Signed integers with one more code below zero are tried with negative scales too, which give that code to the
    positive values. With two-level scales multiples reach up to 1.8: a value that is less than the largest code is
    often nearer to the grid there (four-over-six is 1 and 1.5). Powers of two are tried one exponent down and up.
    """
    if spec.scale != "float32":
        return list(_EXPONENTS if spec.scale == "e8m0" else _NVFP4)
    multiples = _FEW_BITS if spec.element_type.bits <= 4 else _MANY_BITS
    return [sign * multiple for multiple in multiples for sign in ((1, -1) if spec.may_be_negative else (1,))]


def amax_candidates(
    amax: Tensor, spec: QuantSpec, multiples: Sequence[float] | None = None
) -> Iterator[Tensor]:
    """Yield multiples of `amax`, fp32 of any shape; by default those of `amax_multiples`."""
    for multiple in amax_multiples(spec) if multiples is None else multiples:
        yield amax * multiple


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
