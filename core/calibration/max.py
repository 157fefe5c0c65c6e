"""The `max` algorithm: scales from the largest magnitude seen, or as a quantizer's own calibrator says."""

from __future__ import annotations

from typing import ClassVar

from octavo.core.calibration.algorithm import Algorithm


class Max(Algorithm):
    """Scales from the largest magnitudes, which every algorithm starts from."""

    method: ClassVar[str] = "max"
    gathers_weights: ClassVar[bool] = True
