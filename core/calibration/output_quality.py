"""What new values of a weight cost at its layer's output: over all tokens, and on held ones as they are rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.calibration.solvers.objective import gram_error
from octavo.core.calibration.weight_problem import WeightProblem


@dataclass(frozen=True)
class OutputError:
    """Squared errors of a layer's output.

    Attributes:
        tokens: Over all tokens, with the input as it is.
        held: Over the held tokens, with the input as it is rounded; 0 without held tokens.
    """

    tokens: float
    held: float

    def is_worse_than(self, other: OutputError) -> bool:
        """Whether one of the errors is larger, or not finite."""
        return not (self.tokens <= other.tokens and self.held <= other.held)


class OutputQuality:
    """Judges new values of one weight, while it still has its old ones.

    Args:
        problem: The weight, with a Gram matrix and held tokens.
        gram: `problem.gram()`.
    """

    def __init__(self, problem: WeightProblem, gram: Tensor) -> None:
        self._weight = problem.weight()
        self._gram = gram
        held = problem.held_tokens()
        self._inputs = _as_rounded(problem, held).float()
        self._outputs = held.float() @ self._weight.T if len(held) else None

    @torch.no_grad()
    def error(self, weight: Tensor) -> OutputError:
        """Return what `weight`, fp32 [out, in], costs."""
        held = 0.0
        if self._outputs is not None:
            held = _total((self._inputs @ weight.T - self._outputs).square())
        return OutputError(_total(gram_error(weight - self._weight, self._gram)), held)

    @torch.no_grad()
    def ratios(self, weight: Tensor) -> dict[str, float | None]:
        """Return the signal-to-noise ratios of weight and output over all tokens, dB; None where nothing is lost."""
        noise, signal = _total((weight - self._weight).square()), _total(self._weight.square())
        output_noise, output = self.error(weight).tokens, _total(gram_error(self._weight, self._gram))
        return {
            "weight_sqnr_db": _decibels(signal, noise),
            "output_sqnr_db": _decibels(output, output_noise),
        }


def _as_rounded(problem: WeightProblem, tokens: Tensor) -> Tensor:
    """Return the tokens as the input's quantizer rounds them, where it does."""
    quantizer = problem.inputs
    if quantizer is None or quantizer.spec is None or quantizer.needs_calibration or not len(tokens):
        return tokens
    return ops.fake_quantize(tokens, quantizer.state_tensors(), quantizer.spec.key)


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None
