"""BadBatches: batches whose values are not finite, left out input by input and reported."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from octavo.core.errors import CalibrationError, listed
from octavo.core.quantizers import Collector, TensorQuantizer


class BadBatches:
    """What a run that skips bad batches left out.

    Attributes:
        skipped: {quantizer: the batches it saw NaN or infinity in, counted from 0}.
    """

    def __init__(self) -> None:
        self.skipped: dict[str, list[int]] = {}

    def guards(
        self, collectors: Mapping[TensorQuantizer, Collector], names: Mapping[TensorQuantizer, str]
    ) -> dict[TensorQuantizer, Collector]:
        """Return the collectors, each behind one that keeps such batches from it."""
        return {q: _Guard(names[q], collector, self) for q, collector in collectors.items()}

    def check_some_left(self, unseen: Collection[str]) -> None:
        """Refuse when nothing was left of what a quantizer saw.

        Raises:
            CalibrationError: every batch of a quantizer among `unseen` was left out; they are named.
        """
        empty = [name for name in unseen if name in self.skipped]
        if empty:
            raise CalibrationError(
                f"every batch that reached {len(empty)} quantizers had NaN or infinite values and was left out "
                f"(skip_bad_batches): {listed(empty)}; look at these layers' inputs and at the calibration data"
            )

    def note(self) -> str:
        """Return a sentence on what was left out, or an empty string."""
        if not self.skipped:
            return ""
        total = len({batch for batches in self.skipped.values() for batch in batches})
        shown = [f"{name} batch {', '.join(map(str, numbers))}" for name, numbers in self.skipped.items()]
        return (
            f"{total} batches with NaN or infinite values were left out of {len(shown)} inputs (counted from 0): "
            f"{listed(shown, 3)}"
        )


class _Guard:
    """A collector before another one, which sees finite tensors only."""

    def __init__(self, name: str, collector: Collector, found: BadBatches) -> None:
        self._name = name
        self._collector = collector
        self._found = found
        self._batch = -1

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Hand `x` on, or note that it is not finite."""
        self._batch += 1
        if x.isfinite().all():
            self._collector.collect(quantizer, x)
            return
        batches = self._found.skipped.setdefault(self._name, [])
        if self._batch not in batches:  # a second pass over the data finds the same ones
            batches.append(self._batch)
