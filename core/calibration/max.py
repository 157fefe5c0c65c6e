"""The `max` algorithm: scales from the largest magnitude seen, or as a quantizer's own calibrator says."""

from __future__ import annotations

from typing import ClassVar

from pydantic import StrictBool

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.statistics import Needs


class Max(Algorithm):
    """Scales from the largest magnitudes, which every algorithm starts from.

    Attributes:
        all_experts: Show every calibration token to every expert; outputs stay those of the chosen ones.
    """

    method: ClassVar[str] = "max"
    all_experts: StrictBool = False

    def needs(self) -> Needs:
        """Return whom to show tokens."""
        return Needs(all_experts=self.all_experts)
