"""The collector that gathers an input's statistics."""

from __future__ import annotations

from torch import Tensor

from octavo.core.calibration.statistics.input_statistics import InputStatistics
from octavo.core.calibration.statistics.needs import Needs
from octavo.core.errors import CalibrationError
from octavo.core.quantizers import TensorQuantizer


class StatisticsCollector:
    """Statistics of what one quantizer sees.

    Args:
        name: Name of the quantizer.
        needs: What to gather.

    Attributes:
        statistics: Of the input; None while nothing was seen.
    """

    def __init__(self, name: str, needs: Needs) -> None:
        self.name = name
        self.statistics: InputStatistics | None = None
        self._needs = needs

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Take in `x` [..., in].

        Raises:
            CalibrationError: it has NaN or infinite values; the quantizer and the batch are named.
        """
        if self.statistics is None:
            self.statistics = InputStatistics(x.shape[-1], self._needs, x.device)
        self.statistics.add(x)
        if not self.statistics.amax.isfinite().all():
            raise CalibrationError(
                f"{self.name} saw NaN or infinite values in batch {self.statistics.num_batches - 1} (counted from 0); "
                "look at this layer's input and at the calibration data"
            )
