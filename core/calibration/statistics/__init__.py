"""What calibration knows of the inputs of layers: gathered in one pass, shared by all algorithms."""

from octavo.core.calibration.statistics.input_statistics import InputStatistics
from octavo.core.calibration.statistics.needs import Needs

__all__ = ["InputStatistics", "Needs"]
