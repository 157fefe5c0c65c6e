"""Statistics on disk: a folder of safetensors and versioned JSON, read input by input."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.calibration.statistics.fingerprint import ModelFingerprint
from octavo.core.calibration.statistics.input_statistics import SUMS, InputStatistics
from octavo.core.calibration.statistics.needs import Needs
from octavo.core.calibration.statistics.statistics import Collection, Statistics
from octavo.core.errors import CheckpointError
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.shard_reader import ShardReader, read_json, write_manifest
from octavo.core.model.shards import SafetensorsWriter
from octavo.core.modes.record import part

RECORD_NAME = "octavo_statistics.json"
RECORD_VERSION = 1
_SHARD_BYTES = 1_000_000_000


class InputsWriter:
    """Writes statistics of inputs into a folder, one by one.

    Args:
        directory: An existing folder.
        shard_bytes: Bytes that wait in memory to be written, at most.
    """

    def __init__(self, directory: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self.described: dict[str, Any] = {}
        self._directory = directory
        self._writer = SafetensorsWriter(directory, shard_bytes)

    def add(self, name: str, statistics: InputStatistics) -> None:
        """Write the statistics of the input `name`."""
        gram, rows = statistics.factors()
        tensors = {key: getattr(statistics, key) for key in SUMS}
        if gram is not None:
            tensors["gram"] = gram
        if rows:
            tensors["rows"] = torch.cat(rows)
        if statistics.held.seen:
            tensors["held"] = statistics.held.tokens()
        for key, tensor in tensors.items():
            self._writer.add(f"{name}/{key}", tensor)
        self.described[name] = {
            "needs": asdict(statistics.needs),
            "num_tokens": statistics.num_tokens,
            "num_batches": statistics.num_batches,
            "tensors": list(tensors),
            "rows": [len(part) for part in rows],
            "held": [statistics.held.stride, statistics.held.seen],
        }

    def finish(self, is_temporary: bool = False) -> StoredInputs:
        """Write what is left, and return what was written; a temporary folder goes when that does."""
        write_manifest(self._directory, self._writer.finish())
        stored = StoredInputs(self._directory, self.described)
        if is_temporary:
            weakref.finalize(stored, shutil.rmtree, self._directory, ignore_errors=True)
        return stored


class StoredInputs(Mapping[str, InputStatistics]):
    """Statistics of inputs in a folder, each read when it is asked for and not kept.

    Args:
        directory: What `InputsWriter` wrote into.
        described: What it described.

    Raises:
        CheckpointError: a tensor is missing or damaged; it is named.
    """

    def __init__(self, directory: Path, described: Mapping[str, Any]) -> None:
        self._reader = ShardReader(directory)
        self._described = described

    def __getitem__(self, name: str) -> InputStatistics:
        data, where = self._described[name], f"{self._reader.directory / RECORD_NAME}: input {name!r}"
        tensors = {key: self._reader.tensor(f"{name}/{key}") for key in part(data, "tensors", list, where)}
        if not set(SUMS) <= tensors.keys():
            raise CheckpointError(
                f"{where} has the tensors {sorted(tensors)}, expected {sorted(SUMS)} and more"
            )
        try:
            return _restored(data, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{where} is damaged ({error}); collect the statistics again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)

    def __contains__(self, name: object) -> bool:
        return name in self._described

    def amax(self, name: str) -> Tensor:
        """Read the largest magnitudes alone, fp32 [in]."""
        return self._reader.tensor(f"{name}/amax")


def save_statistics(statistics: Statistics, directory: Path, overwrite: bool) -> None:
    """Write statistics into a folder, which appears whole or not at all."""
    with atomic_folder(directory, overwrite) as folder:
        writer = InputsWriter(folder)
        for name in statistics.inputs:
            writer.add(name, statistics.inputs[name])
        writer.finish()
        record = {
            "version": RECORD_VERSION,
            **statistics.describe(),
            "points": dict(statistics.points),
            "tokens_per_expert": {k: v.tolist() for k, v in statistics.tokens_per_expert.items()},
            "inputs": writer.described,
        }
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_statistics(directory: Path) -> Statistics:
    """Read what `save_statistics` wrote; see `Statistics.load`."""
    path = directory / RECORD_NAME
    try:
        data = read_json(path)
        version = part(data, "version", int, str(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; give a folder that octavo calibrate or Statistics.save wrote"
        ) from error
    if version != RECORD_VERSION:
        raise CheckpointError(
            f"{path} has version {version}; this Octavo reads version {RECORD_VERSION}. Collect them again"
        )
    where = str(path)
    parts = {name: part(data, name, dict, where) for name in ("model", "collection", "points", "inputs")}
    experts = part(data, "tokens_per_expert", dict, where)
    try:
        return Statistics(
            ModelFingerprint(**parts["model"]),
            tuple(part(data, "data", list, where)),
            Collection(**parts["collection"]),
            parts["points"],
            StoredInputs(directory, parts["inputs"]),
            {name: torch.tensor(tokens, dtype=torch.int64) for name, tokens in experts.items()},
            part(data, "skipped_batches", dict, where),
            str(directory),
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged ({error}); collect the statistics again") from error


def _restored(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InputStatistics:
    statistics = InputStatistics(len(tensors["amax"]), Needs(**data["needs"]))
    statistics.num_tokens, statistics.num_batches = data["num_tokens"], data["num_batches"]
    for name in SUMS:
        setattr(statistics, name, tensors[name])
    rows = torch.split(tensors["rows"], data["rows"]) if "rows" in tensors else ()
    # Copies, for memory that is aligned as in the pass: products add up in the same order then.
    statistics.set_factors(tensors.get("gram"), [part.clone() for part in rows])
    if "held" in tensors:
        statistics.held.restore(tensors["held"], *data["held"])
    return statistics
