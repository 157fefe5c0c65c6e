"""The record of a model's modes on disk: in a file of its own, or in the config that a framework writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.errors import CheckpointError, ModeError
from octavo.core.model.shard_reader import read_json
from octavo.core.modes.record import ModeRecord, history, part
from octavo.core.modes.registry import mode_named

RECORD_NAME = "octavo_modes.json"
RECORD_VERSION = 1
HF_METHOD = "octavo"  # the `quant_method` in config.json of a folder that `save` wrote
IN_CONFIG = "octavo_modes"  # the record, as text, in the `quantization_config` that a framework writes


@dataclass(frozen=True)
class SavedRecord:
    """What a folder says of a model's modes.

    Attributes:
        modes: Their records, in order.
        aliases: {tensor that was written once: the name under which it was}.
        is_framework: The framework's own `save_pretrained` wrote the folder: the record is in config.json, tensors
            have the names of its checkpoints, and tied ones are missing without a word.
    """

    modes: tuple[ModeRecord, ...]
    aliases: Mapping[str, str]
    is_framework: bool = False


def describe_modes(model: nn.Module) -> dict[str, Any]:
    """Return the record of the model's modes as they are now, JSON-ready; `read_record` reads it."""
    modes = [_current(model, record).to_json() for record in history(model)]
    return {"version": RECORD_VERSION, "modes": modes}


def described_in_config(model: nn.Module) -> dict[str, Any]:
    """Return the `quantization_config` of a model that its framework saves; `read_record` finds the modes in it.

    They are text there, whose order frameworks cannot change.
    """
    return {"quant_method": HF_METHOD, IN_CONFIG: json.dumps(describe_modes(model))}


def read_record(directory: Path) -> SavedRecord:
    """Read the record that `save` wrote, or the framework's `save_pretrained` into its config.json.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ModeError: it is of a newer version, or has a mode that is unknown.
    """
    path, in_config = directory / RECORD_NAME, _record_in_config(directory)
    try:
        data = in_config if in_config is not None else read_json(path)
        part(data, "version", int, str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give a folder that octavo.save wrote") from error
    records = modes_of(data, str(path))
    if in_config is not None:
        return SavedRecord(records, {}, is_framework=True)
    return SavedRecord(records, part(data, "aliases", dict, str(path)))


def modes_of(data: Any, where: str) -> tuple[ModeRecord, ...]:
    """Return the records of `describe_modes`, read from JSON; `where` says where they were found.

    Raises:
        CheckpointError: a part is missing or of another kind.
        ModeError: it is of a newer version, or has a mode that is unknown.
    """
    version = part(data, "version", int, where)
    if version != RECORD_VERSION:
        raise ModeError(
            f"{where} has version {version}; this Octavo reads version {RECORD_VERSION}. Upgrade it"
        )
    modes = part(data, "modes", list, where)
    records = tuple(ModeRecord.from_json(mode, f"{where}: modes[{n}]") for n, mode in enumerate(modes))
    for record in records:
        newest = mode_named(record.mode).version
        if record.version > newest:
            raise ModeError(
                f"mode {record.mode!r} has version {record.version}; this Octavo reads up to {newest}"
            )
    return records


def _record_in_config(directory: Path) -> dict[str, Any] | None:
    """Return the record in the framework's config, where that is its place."""
    path = directory / "config.json"
    if (directory / RECORD_NAME).is_file() or not path.is_file():
        return None
    found = read_json(path).get("quantization_config")
    if not isinstance(found, dict) or IN_CONFIG not in found:
        return None
    try:
        record = json.loads(part(found, IN_CONFIG, str, str(path)))
    except ValueError as error:
        raise CheckpointError(f"{path}: {IN_CONFIG} cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: {IN_CONFIG} must hold a JSON object, found {type(record).__name__}")
    return record


def _current(model: nn.Module, record: ModeRecord) -> ModeRecord:
    return replace(record, state=mode_named(record.mode).describe(model, record.state))
