"""What rounding costs a layer's output, from its input's Gram matrix or from some of its input's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import amax_state
from octavo.core.formats import QuantSpec, fake_quantize


def gram_error(change: Tensor, gram: Tensor) -> Tensor:
    """Return ‖X · changeᵀ‖², fp32 [], from `gram` = XᵀX alone: tr(change · gram · changeᵀ).

    Args:
        change: fp32 [out, in], the rounded weight minus the weight.
        gram: fp32 [in, in].
    """
    return ((change @ gram) * change).sum()


def rounded_weight(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Return `weight` [out, in] rounded to nearest, with scales from its own largest magnitudes."""
    state = amax_state(weight, spec)
    return fake_quantize(weight, [state[name] for name in spec.state], spec)


def rounded_input(x: Tensor, amax: Tensor, spec: QuantSpec) -> Tensor:
    """Return the tokens `x` [tokens, in] rounded.

    Args:
        x: Any float dtype.
        amax: fp32 [], the calibrated range of the whole tensor; unused where the format has none.
        spec: Of an activation: calibrated per tensor, dynamic, or dynamic with a calibrated global scale.
    """
    return fake_quantize(x, [amax.float()] * len(spec.state), spec)


def output_error(rounded: Tensor, x: Tensor, target: Tensor) -> float:
    """Return ‖x · roundedᵀ − target‖²; `rounded` [out, in], `x` [tokens, in], `target` [tokens, out], all fp32."""
    return float((x @ rounded.T - target).square().sum())


def stacked_rows(weights: Sequence[Tensor], spec: QuantSpec | None = None) -> Tensor:
    """Return weights that read one input as one fp32 [sum of out, in], each rounded alone where a format is given."""
    return torch.cat([(w if spec is None else rounded_weight(w, spec)).float() for w in weights])
