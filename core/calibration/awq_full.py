"""The `awq_full` algorithm: `awq_lite`, then `awq_clip` on what it scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from octavo.core.calibration.awq_clip import AwqClip
from octavo.core.calibration.awq_lite import AwqLite
from octavo.core.calibration.statistics import Needs

if TYPE_CHECKING:
    from octavo.core.calibration.calibration import Calibration


class AwqFull(AwqLite, AwqClip):
    """ModelOpt's `AWQFullCalibConfig`: the options of both."""

    method: ClassVar[str] = "awq_full"

    def needs(self) -> Needs:
        """Return what both need, from one pass."""
        return AwqLite.needs(self) | AwqClip.needs(self)

    def run(self, calibration: Calibration) -> None:
        """Scale columns, then clip ranges.

        Raises:
            UnsupportedError: blocks are not along rows.
        """
        AwqLite.run(self, calibration)
        AwqClip.run(self, calibration)
