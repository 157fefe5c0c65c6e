"""Algorithm: one way to choose scales and codes, with its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from octavo.core.calibration.layerwise import Layerwise
from octavo.core.calibration.statistics.needs import Needs
from octavo.core.calibration.support import FAMILIES

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration


class Algorithm(BaseModel):
    """Base of every algorithm: its fields are the options that a config may give, with the peer's names.

    Attributes:
        method: The name by which a config asks for it.
        solves: Families of weight formats (`support.py`) that it knows.
        leaves: Families of which weights keep the scales that they have. Others are refused.
        moves_weights: Whether weights hold other values afterwards, so that the original model is gone.
        gathers_weights: Whether it works on a model whose weights FSDP2 or ZeRO-3 has divided among ranks: it reads no
            weight outside of `gathered`.
        layerwise: Whether to calibrate block by block. This and what follows: one algorithm of a list that asks for it
            does for all.
        all_experts: Show every calibration token to every expert; outputs stay those of the chosen ones.
        expert_statistics: Experts whose weights are stacked share the statistics of their inputs, or each has its own:
            of the tokens that it was chosen for, or with `all_experts` of all. Experts that are layers of their own
            have their own in any case.
        min_expert_tokens: An expert that saw fewer tokens is not solved with its own statistics.
        expert_fallback: It is solved with those of all experts instead, or keeps the scales of `max`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: ClassVar[str] = ""
    solves: ClassVar[frozenset[str]] = frozenset(FAMILIES)
    leaves: ClassVar[frozenset[str]] = frozenset()
    moves_weights: ClassVar[bool] = False
    gathers_weights: ClassVar[bool] = False
    layerwise: Layerwise = Layerwise()
    all_experts: StrictBool = False
    expert_statistics: Literal["shared", "own"] = "shared"
    min_expert_tokens: int = Field(default=1, ge=1, strict=True)
    expert_fallback: Literal["shared", "weight_only"] = "shared"

    def needs(self) -> Needs:
        """Return what it must know of the inputs of weights."""
        return Needs()

    def run(self, calibration: Calibration) -> None:
        """Change the quantizers, and weights, of a model whose quantizers all have the scales of `max` already.

        Raises:
            CalibrationError: it yields nothing usable.
            UnsupportedError: it does not know a format; the layer is named.
        """
