"""Statistics: what one pass over a plain model showed, kept for any number of quantizations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from octavo.core.calibration.statistics.fingerprint import ModelFingerprint
from octavo.core.calibration.statistics.input_statistics import InputStatistics
from octavo.core.calibration.statistics.needs import Needs
from octavo.core.errors import CalibrationError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Collection:
    """What a collection looked at: the options of `collect_statistics`."""

    gram: bool = True
    held_tokens: int = 256
    outputs: bool = False
    all_experts: bool = False
    skip_bad_batches: bool = False

    @property
    def needs(self) -> Needs:
        """What is gathered for inputs of weights."""
        return Needs(
            channels=True, gram=self.gram, held_tokens=self.held_tokens, all_experts=self.all_experts
        )

    def differences(self, other: Collection) -> list[str]:
        """Return the options that differ, with both values."""
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return [f"{name}={getattr(self, name)} and {getattr(other, name)}" for name in names]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of every point of a model that can be quantized: inputs of layers; queries, keys and values.

    Attributes:
        model: Fingerprint of the model.
        data: Fingerprints of the data, one for each merged part: hashes of what the model was called with.
        collection: How they were collected.
        points: {quantizer: the input that it sees}; layers that read the same tensor have one input.
        inputs: What was seen of each input, by the name of the quantizer that shows it; reading one may read a file.
        tokens_per_expert: {layer of stacked experts: int64 [experts], tokens that each was chosen for}.
        skipped_batches: {quantizer: batches left out since their values were not finite, counted from 0}.
        source: Where they come from, for messages.
    """

    model: ModelFingerprint
    data: tuple[str, ...]
    collection: Collection
    points: Mapping[str, str]
    inputs: Mapping[str, InputStatistics]
    tokens_per_expert: Mapping[str, Tensor] = field(default_factory=dict)
    skipped_batches: Mapping[str, list[int]] = field(default_factory=dict)
    source: str = "the statistics"

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write a folder of safetensors and versioned JSON that `load` reads; it appears whole or not at all.

        Args:
            directory: A new or empty folder.
            overwrite: Replace a folder that Octavo wrote.

        Raises:
            ExportError: the folder is not empty or cannot be written.
        """
        from octavo.core.calibration.statistics.storage import save_statistics

        save_statistics(self, Path(directory), overwrite)

    @classmethod
    def load(cls, directory: str | Path) -> Statistics:
        """Read what `save` wrote; tensors are read when they are used.

        Raises:
            CheckpointError: files are missing or damaged, or of another version.
        """
        from octavo.core.calibration.statistics.storage import load_statistics

        return load_statistics(Path(directory))

    def merge(self, other: Statistics) -> Statistics:
        """Return statistics of the data of both: maxima merge exactly, sums to rounding.

        Raises:
            CalibrationError: the other is of another model, or was collected in another way; both fingerprints and
                what differs are named.
        """
        self._check_model(other.model, other.source)
        different = self.collection.differences(other.collection)
        if different or self.points != other.points:
            raise CalibrationError(
                f"{self.source} and {other.source} were collected in different ways and cannot be merged: "
                f"{', '.join(different) or 'they look at different layers'}; collect both with the same options"
            )
        inputs = {name: self._merged(name, other) for name in {**self.inputs, **other.inputs}}
        experts = dict(self.tokens_per_expert)
        for name, tokens in other.tokens_per_expert.items():
            experts[name] = experts[name] + tokens if name in experts else tokens
        first = {name: statistics.num_batches for name, statistics in self.inputs.items()}
        skipped = {name: list(batches) for name, batches in self.skipped_batches.items()}
        for name, batches in other.skipped_batches.items():
            before = first.get(name, 0) + len(skipped.get(name, []))
            skipped[name] = skipped.get(name, []) + [before + batch for batch in batches]
        return replace(
            self,
            data=(*self.data, *other.data),
            inputs=inputs,
            tokens_per_expert=experts,
            skipped_batches=skipped,
        )

    def check_model(self, model: nn.Module) -> None:
        """Refuse a plain model that these are not of.

        Raises:
            CalibrationError: it is another one; both fingerprints and what differs are named.
        """
        self._check_model(ModelFingerprint.of(model), "this model")

    def describe(self) -> dict[str, Any]:
        """Return what these are of, JSON-ready, without the numbers."""
        return {
            "model": asdict(self.model),
            "data": list(self.data),
            "collection": asdict(self.collection),
            "skipped_batches": dict(self.skipped_batches),
        }

    def _check_model(self, found: ModelFingerprint, where: str) -> None:
        different = self.model.differences(found)
        if different:
            raise CalibrationError(
                f"{self.source} and {where} are not of one model: {' and '.join(different)} differ. Fingerprint of "
                f"{self.source}: {self.model}; of {where}: {found}. Collect statistics of this model "
                "(octavo.collect_statistics, octavo calibrate), loaded in the same dtype"
            )

    def _merged(self, name: str, other: Statistics) -> InputStatistics:
        parts = [statistics.inputs[name] for statistics in (self, other) if name in statistics.inputs]
        merged = InputStatistics(parts[0].num_channels, parts[0].needs, parts[0].amax.device)
        for part in parts:
            merged.merge(part)
        return merged
