"""Training with quantizers on: schedules, learned scales, checks on resuming, and what training says of itself."""

from octavo.core.training.schedule import Schedule
from octavo.core.training.training import QuantizedTraining

__all__ = ["QuantizedTraining", "Schedule"]
