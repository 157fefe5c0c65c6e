"""What new values of a weight cost at its layer's output: over all tokens, and on held ones as they are rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        held = problem.held_tokens().float()
        self._inputs = problem.rounded_tokens()
        self._outputs = held @ self._weight.T if len(held) else None

    @torch.no_grad()
    def error(self, weight: Tensor) -> OutputError:
        """Return what `weight`, fp32 [out, in], costs."""
        held = 0.0
        if self._outputs is not None:
            held = _total((self._inputs @ weight.T - self._outputs).square())
        return OutputError(_total(gram_error(weight - self._weight, self._gram)), held)


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))
