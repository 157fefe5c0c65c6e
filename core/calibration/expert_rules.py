"""ExpertRules: which statistics the weights of experts are solved with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.core.calibration.algorithm import Algorithm


@dataclass(frozen=True)
class ExpertRules:
    """What the algorithms of a run say of experts, together; `Algorithm` explains the options.

    Attributes:
        own: Statistics are gathered for each expert of a stack.
        min_tokens: An expert that saw fewer is not solved with its own statistics.
        weight_only: It keeps the scales of `max` then, and is not solved with those of all experts.
        all_experts: Every token is shown to every expert.
    """

    own: bool = False
    min_tokens: int = 1
    weight_only: bool = False
    all_experts: bool = False

    @classmethod
    def of(cls, algorithms: Iterable[Algorithm]) -> ExpertRules:
        """Return the rules of algorithms that run in turn: what one of them asks for holds for all."""
        algorithms = list(algorithms)
        return cls(
            any(algorithm.expert_statistics == "own" for algorithm in algorithms),
            max((algorithm.min_expert_tokens for algorithm in algorithms), default=1),
            any(algorithm.expert_fallback == "weight_only" for algorithm in algorithms),
            any(algorithm.all_experts for algorithm in algorithms),
        )


SHARED = ExpertRules()
