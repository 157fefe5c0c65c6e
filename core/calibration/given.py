"""What a calibration is given besides data: statistics in its place, a budget, and leave to skip bad batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.calibration.statistics.bad_batches import BadBatches
from octavo.core.calibration.statistics.sizes import parse_bytes
from octavo.core.calibration.statistics.statistics import Statistics
from octavo.core.console import say
from octavo.core.errors import ConfigError
from octavo.core.model.sharded import spans_ranks


@dataclass(frozen=True)
class Given:
    """What calibration knows of inputs, and how much of it at once.

    Attributes:
        statistics: Stand for the data; None where data is run.
        budget: Bytes of statistics in memory; over it, weights are solved part by part, each after a run of its own.
        bad_batches: Notes batches that are not finite, and leaves them out; None refuses them.
        of_all_ranks: Put together what all ranks see; each runs its own part of the data.
    """

    statistics: Statistics | None = None
    budget: int | None = None
    bad_batches: BadBatches | None = None
    of_all_ranks: bool = False

    def describe(self) -> dict[str, Any]:
        """Return what the record of a quantized model says of it, JSON-ready; nothing where nothing was given."""
        described: dict[str, Any] = {}
        if self.statistics is not None:
            described["statistics"] = self.statistics.describe()
        if self.bad_batches is not None:
            described["skipped_batches"] = self.bad_batches.skipped
        return described

    def say(self, quiet: bool) -> None:
        """Tell the user what was used in place of data, and which batches were left out."""
        if self.statistics is not None:
            say(
                f"calibrated from {self.statistics.source} (model {self.statistics.model.values}, data "
                f"{', '.join(self.statistics.data)}): 0 forward passes over data",
                quiet,
            )
        if self.bad_batches is not None and self.bad_batches.note():
            say(f"warning: {self.bad_batches.note()}", quiet)


NOTHING_GIVEN = Given()


def given_for(
    model: nn.Module,
    forward_loop: ForwardLoop | None,
    statistics: Statistics | str | Path | None,
    stats_budget: int | str | None,
    skip_bad_batches: bool,
) -> Given:
    """Return what `quantize` is given; statistics of a folder are opened, and held to the plain model.

    Raises:
        ConfigError: there are both data and statistics, or the budget is no size.
        CheckpointError: the statistics cannot be read.
        CalibrationError: they are of another model.
    """
    budget = parse_bytes(stats_budget)
    if statistics is not None and forward_loop is not None:
        raise ConfigError(
            "both forward_loop (--calib-data) and statistics (--stats) are given; give one of them"
        )
    if isinstance(statistics, (str, Path)):
        statistics = Statistics.load(statistics)
    if statistics is not None:
        statistics.check_model(model)
    return Given(statistics, budget, BadBatches() if skip_bad_batches else None, spans_ranks(model))
