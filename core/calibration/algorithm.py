"""Algorithm: one way to choose scales and codes, with its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

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
        layerwise: Whether to calibrate block by block; one algorithm of a list that says so does for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: ClassVar[str] = ""
    solves: ClassVar[frozenset[str]] = frozenset(FAMILIES)
    leaves: ClassVar[frozenset[str]] = frozenset()
    layerwise: Layerwise = Layerwise()

    def needs(self) -> Needs:
        """Return what it must know of the inputs of weights."""
        return Needs()

    def run(self, calibration: Calibration) -> None:
        """Change the quantizers, and weights, of a model whose quantizers all have the scales of `max` already.

        Raises:
            CalibrationError: it yields nothing usable.
            UnsupportedError: it does not know a format; the layer is named.
        """
