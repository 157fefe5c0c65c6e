"""An `amax` that training changes: a factor 2^shift of what calibration found, and how gradients reach the shift.

The shift is in octaves and starts at 0, so that training starts from the calibrated scales bit for bit, no scale can
change its sign, and an optimizer's step means the same for large and small scales (as in Jain et al., "Trained
quantization thresholds", arXiv:1903.08066). Weight decay pulls a shift to 0: towards the calibrated scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from octavo.core.errors import ConfigError, nearest
from octavo.core.formats import PerTensor, QuantSpec

Estimator = Literal["lsq", "pact"]


@dataclass(frozen=True)
class Learning:
    """How a scale is learned, as plain numbers, which compilers trace.

    Attributes:
        estimator: `lsq`, where every value has a say, or `pact`, where those that are clipped do.
        factor: LSQ's factor of a scale's gradient, 1/√(N·Q): N values share the scale, Q is the largest code. It keeps
            the steps of scales and weights in proportion, and sums over many values from filling up the norm that
            gradients are clipped to (Esser et al., arXiv:1902.08153, section 2.2).
        lowest: The lower end of the range, as a multiple of `amax`.
    """

    estimator: Estimator
    factor: float
    lowest: float

    @classmethod
    def of(cls, spec: QuantSpec | None, estimator: Estimator, elements_per_scale: float) -> Learning:
        """Return how `estimator` learns the scales of a format.

        Raises:
            ConfigError: the estimator does not exist, or the format has no static `amax` of the kind it needs.
        """
        known = get_args(Estimator)
        if estimator not in known:
            raise ConfigError(
                f"unknown estimator {estimator!r}; known: {', '.join(known)}.{nearest(estimator, known)}"
            )
        if spec is None or "amax" not in spec.state:
            raise ConfigError(
                f"{spec} has no calibrated amax, whose scales could be learned; use a static format, or keep its scales"
            )
        if estimator == "pact" and (
            spec.global_max is not None or not isinstance(spec.granularity, PerTensor)
        ):
            raise ConfigError(
                f"estimator 'pact' learns one clipping value per tensor, found {spec}; use 'lsq'"
            )
        element = spec.element_type
        factor = 1 / math.sqrt(max(elements_per_scale, 1.0) * element.max)
        return cls(estimator, factor, element.min / element.max)


def shifted(amax: Tensor, shift: Tensor, factor: float) -> Tensor:
    """Return amax · 2^shift, whose gradient reaches `shift` times `factor`.

    Args:
        amax: fp32, any shape; without a gradient.
        shift: fp32 of that shape, [1] for a scalar.
        factor: See `Learning`.
    """
    result: Tensor = _Shifted.apply(amax, shift, factor)  # type: ignore[no-untyped-call]
    return result


def clipped(x: Tensor, amax: Tensor, lowest: float) -> Tensor:
    """Return `x` clipped to the range from ``lowest · amax`` to `amax`; the gradient of clipped values goes to `amax`.

    PACT (Choi et al., arXiv:1805.06085), on both sides of zero: what is rounded inside the range says nothing about
    its ends.
    """
    result: Tensor = _Clipped.apply(x, amax, lowest)  # type: ignore[no-untyped-call]
    return result


class _Shifted(torch.autograd.Function):
    """Keeps its result alone, which the operators keep anyway."""

    @staticmethod
    def forward(ctx: Any, amax: Tensor, shift: Tensor, factor: float) -> Tensor:
        result = amax * torch.exp2(shift.reshape(amax.shape))
        ctx.factor, ctx.shape = factor * math.log(2), shift.shape
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), (result,) = grads, ctx.saved_tensors
        return None, (grad * result * ctx.factor).reshape(ctx.shape), None


class _Clipped(torch.autograd.Function):
    """Keeps its result alone, which the layer keeps in place of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor, lowest: float) -> Tensor:
        result = x.clamp((amax * lowest).to(x.dtype), amax.to(x.dtype))
        ctx.lowest = lowest
        ctx.save_for_backward(result, amax)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), (result, amax) = grads, ctx.saved_tensors
        above = result >= amax.to(result.dtype)
        below = result <= (amax * ctx.lowest).to(result.dtype)
        grad_amax = (grad * above).sum(dtype=torch.float32) + ctx.lowest * (grad * below).sum(
            dtype=torch.float32
        )
        return grad * ~(above | below), grad_amax.reshape(amax.shape), None
