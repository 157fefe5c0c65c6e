"""What block reconstruction can be told, and what it tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from octavo.core.errors import ConfigError

Loss = Literal["mse", "kl"]


@dataclass(frozen=True)
class ReconstructionOptions:
    """How long and how boldly a module is trained, by steps along the signs of the gradients.

    Attributes:
        iterations: Number of steps; their length falls linearly to 0.
        batch_size: Calls in one step. A call may hold several sequences; batches are drawn without repetition until
            every call was seen.
        reach: How far a value can move before it is rounded, in steps between codes. The learning rate is
            ``2 · reach / iterations`` at first and falls to 0.
        range_reach: The same of the ranges, in parts of themselves; 0 keeps them.
        loss: `mse` between outputs, or `kl` from the softmax of the targets to that of the outputs.
        held: Calls kept out of training, the last ones, that judge start and result.
        checks: How often, evenly spaced, the held calls are looked at; the best look is the result.
        seed: Of the order of the calls.
    """

    iterations: int = 50
    batch_size: int = 1
    reach: float = 0.3
    range_reach: float = 0.03
    loss: Loss = "mse"
    held: int = 2
    checks: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "held", "checks"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"block reconstruction: {name}={value!r}; expected an integer of at least 1"
                )
        for name, least in (("reach", "above 0"), ("range_reach", "of at least 0")):
            value = getattr(self, name)
            is_number = type(value) in (int, float) and math.isfinite(value)
            if not is_number or value < 0 or (value == 0 and least == "above 0"):
                raise ConfigError(f"block reconstruction: {name}={value!r}; expected a finite number {least}")
        if self.loss not in get_args(Loss):
            raise ConfigError(f"block reconstruction: loss={self.loss!r}; expected one of mse, kl")


@dataclass(frozen=True)
class ReconstructionReport:
    """What training did to one module.

    Attributes:
        start: Loss of the start on the held calls.
        held: Loss of the result on the held calls; never above `start`.
        iteration: Step of which the result is; 0 where nothing was better than the start, which is then the result.
        iterations: Steps made.
        looks: (step, loss on the held calls) of every look.
    """

    start: float
    held: float
    iteration: int
    iterations: int
    looks: tuple[tuple[int, float], ...]
