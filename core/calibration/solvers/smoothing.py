"""SmoothQuant: channels of the input divided by s, columns of the weight multiplied by s (arXiv:2211.10438).

A `pre_quant_scale` is 1/s: what the input is multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.calibration.solvers.nearest import rounded_input, stacked_rows
from octavo.core.formats import QuantSpec

SMALLEST, LARGEST = 1e-4, 1e4
_DEAD = 2.0**-31
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def smoothquant_scale(act_amax: Tensor, weight: Tensor, alpha: float = 1.0) -> Tensor:
    """Return the pre_quant_scale wmax^(1−α) / actmax^α of each input channel, as ModelOpt 0.47 computes it.

    The power of wmax is taken in the weight's dtype. Channels that were never active get the largest scale, 1e4.
    Where some column of the weight is zero, ModelOpt meets its own errors; here channels that were never active
    then get 1, and zero columns the smallest scale, 1e-4.

    Args:
        act_amax: [in], largest magnitude of each input channel.
        weight: [out, in], any float dtype.
        alpha: Share of the difficulty that moves to the weight, 0 to 1.

    Returns:
        fp32 [in], within 1e-4 and 1e4.
    """
    act_amax = act_amax.float()
    scale = weight.abs().amax(0).pow(1 - alpha) / act_amax.pow(alpha)
    if scale.min() <= _DEAD:
        scale = torch.where(act_amax <= _DEAD, 1.0, scale)
    return torch.where(scale.isnan(), 1.0, scale).float().clamp(SMALLEST, LARGEST)


def divided_columns(weight: Tensor, pre_quant_scale: Tensor) -> Tensor:
    """Return `weight` [out, in] for inputs that are multiplied by `pre_quant_scale` [in], in the weight's dtype.

    As ModelOpt: multiplied by the fp32 reciprocal of the fp32 scale, although the stored scale is rounded to the
    weight's dtype.
    """
    return (weight * (1.0 / pre_quant_scale.float())).to(weight.dtype)


def smoothed_amax(act_amax: Tensor, pre_quant_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the range, fp32 [], of inputs times `pre_quant_scale` [in], rounded to `dtype` as ModelOpt's."""
    return (act_amax.to(dtype) * pre_quant_scale.float()).amax().to(dtype).float()


@dataclass(frozen=True, eq=False)
class Smoothing:
    """What a search chose.

    Attributes:
        alpha: Of the chosen scale; None where no smoothing is best.
        pre_quant_scale: fp32 [in]; ones where no smoothing is best.
        error: Squared output error on the held tokens.
        plain_error: The same without smoothing; never below `error`.
    """

    alpha: float | None
    pre_quant_scale: Tensor
    error: float
    plain_error: float


def balanced_scale(act: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Return weight^(1−α) / act^α with a geometric mean of 1, fp32 [in]; 1 for channels where either is 0.

    Args:
        act: fp32 [in], a magnitude of each input channel: its largest value or its root mean square.
        weight: fp32 [in], the same of each column of the weight.
        alpha: 0 to 1.
    """
    alive = (act > 0) & (weight > 0)
    log = torch.where(alive, (1 - alpha) * weight.log() - alpha * act.log(), 0.0)
    if alive.any():
        log = torch.where(alive, log - log[alive].mean(), 0.0)
    return log.exp().clamp(SMALLEST, LARGEST)


def channel_magnitudes(
    weights: Sequence[Tensor],
    act_amax: Tensor,
    act_rms: Tensor | None,
    tie: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the magnitudes of input channels and of weight columns that `balanced_scale` balances, each fp32 [in].

    Args:
        weights: Each [out, in], all that read the input.
        act_amax: [in], largest magnitude of each input channel.
        act_rms: [in], its root mean square; with it, root mean squares are balanced, else largest magnitudes.
        tie: See `search_smoothing`.
    """
    rows = stacked_rows(weights)
    if act_rms is None:
        act, columns = act_amax.float(), rows.abs().amax(0)
    else:
        act, columns = act_rms.float(), rows.square().mean(0).sqrt()
    return (act, columns) if tie is None else (tie(act), tie(columns))


def search_smoothing(
    weights: Sequence[Tensor],
    act_amax: Tensor,
    held: Tensor,
    weight_spec: QuantSpec | None,
    input_spec: QuantSpec,
    act_rms: Tensor | None = None,
    alphas: Sequence[float] = ALPHAS,
    tie: Callable[[Tensor], Tensor] | None = None,
) -> Smoothing:
    """Return the smoothing with the least output error on held tokens, weights and inputs both rounded.

    One scale serves all weights that read the input, so that it can be folded: the one with the least error in all,
    among those with which no weight's own error is greater than without smoothing.

    Args:
        weights: Each [out, in], all that read this input.
        act_amax: [in], largest magnitude of each input channel over all the calibration data.
        held: [tokens, in], a sample of the inputs.
        weight_spec: Format of each weight, not stacked; scales are the largest magnitudes. None: weights are not
            rounded here, which is better where GPTQ will round them.
        input_spec: Format of the input (see `rounded_input`).
        act_rms: [in], root mean square of each input channel. With it, scales balance root mean squares (better
            with block scales); without it, largest magnitudes (better with a scale per tensor).
        alphas: Tried in this order; of equal ones the first wins. No smoothing is always tried first.
        tie: Makes the magnitudes [in] of inputs and columns equal where scales must be, so that they can be folded
            (`folding.tied_to_heads`).
    """
    rows, act_amax, held = stacked_rows(weights), act_amax.float(), held.float()
    target = held @ rows.T
    act, columns = channel_magnitudes(weights, act_amax, act_rms, tie)
    best: Smoothing | None = None
    plain: Tensor | None = None
    for alpha in (None, *alphas):
        scale = torch.ones_like(columns) if alpha is None else balanced_scale(act, columns, alpha)
        rounded = stacked_rows([divided_columns(w.float(), scale) for w in weights], weight_spec)
        x = rounded_input(held * scale, (act_amax * scale).amax(), input_spec)
        by_row = (x @ rounded.T - target).square().sum(0)
        parts = torch.split(by_row, [len(weight) for weight in weights])
        errors = torch.stack([part.sum() for part in parts])
        plain = errors if plain is None else plain
        error = float(errors.sum())
        if best is None or (error < best.error and bool((errors <= plain).all())):
            best = Smoothing(alpha, scale, error, error if best is None else best.plain_error)
    assert best is not None  # noqa: S101 (the loop always runs)
    return best
