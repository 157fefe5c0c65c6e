"""Weights and inputs rounded to nearest, with scales from their largest magnitudes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import amax_state
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec, fake_quantize


def rounded_weight(weight: Tensor, spec: QuantSpec, global_amax: Tensor | None = None) -> Tensor:
    """Return `weight` [out, in] rounded to nearest, with scales from its own largest magnitudes.

    Args:
        weight: Any float dtype.
        spec: Its format, not stacked.
        global_amax: fp32 [], the largest magnitude of the weight whose rows these are; by default their own.
    """
    state = amax_state(weight, spec)
    if global_amax is not None:
        state["global_amax"] = global_amax
    return fake_quantize(weight, [state[name] for name in spec.state], spec)


def rounds_rows_alone(spec: QuantSpec) -> bool:
    """Whether a row of a weight is rounded without regard to other rows, but for the largest magnitude of all."""
    match spec.granularity:
        case PerBlock(sizes=((-1, _),)) | PerToken() | PerChannel(axis=0 | -2):
            return True
    return False


def rounded_input(x: Tensor, amax: Tensor, spec: QuantSpec) -> Tensor:
    """Return the tokens `x` [tokens, in] rounded.

    Args:
        x: Any float dtype.
        amax: fp32 [], the calibrated range of the whole tensor; unused where the format has none.
        spec: Of an activation: calibrated per tensor, dynamic, or dynamic with a calibrated global scale.
    """
    return fake_quantize(x, [amax.float()] * len(spec.state), spec)


def stacked_rows(weights: Sequence[Tensor], spec: QuantSpec | None = None) -> Tensor:
    """Return weights that read one input as one fp32 [sum of out, in], each rounded alone where a format is given."""
    return torch.cat([(w if spec is None else rounded_weight(w, spec)).float() for w in weights])
