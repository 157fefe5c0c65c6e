"""Saving a model with its modes, and restoring them on a plain model: safetensors and versioned JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.errors import CheckpointError, ModeError, listed
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.shards import SINGLE_NAME, SafetensorsWriter, verify_shards
from octavo.core.modes.record import ModeRecord, history, set_history
from octavo.core.modes.registry import mode_named

RECORD_NAME = "octavo_modes.json"
RECORD_VERSION = 1


def save(model: nn.Module, directory: str | Path, overwrite: bool = False) -> None:
    """Save a model's tensors and the record of its modes, for `restore`.

    The folder appears whole or not at all. Tied tensors are written once.

    Args:
        model: A model that modes were applied to (`quantize`, …); a plain one is saved with an empty record.
        directory: A new or empty folder.
        overwrite: Replace a folder that is not empty.

    Raises:
        ExportError: the folder is not empty or cannot be written.
    """
    aliases: dict[str, str] = {}
    with atomic_folder(Path(directory), overwrite) as folder:
        writer = SafetensorsWriter(folder, max_shard_bytes=2**62)  # one file: names need no index
        for name, tensor in _distinct_tensors(model, aliases).items():
            writer.add(name, tensor)
        verify_shards(folder, writer.finish())
        record = {
            "version": RECORD_VERSION,
            "modes": [_current(model, record).to_json() for record in history(model)],
            "aliases": aliases,
        }
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def restore(model: nn.Module, directory: str | Path) -> nn.Module:
    """Apply the modes that `save` recorded to a plain model, and load its tensors.

    Args:
        model: A model of the class that was saved, with no modes applied; changed in place.
        directory: What `save` wrote.

    Returns:
        `model`.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit the model.
        ModeError: `model` has modes already, or the record is of a newer version.
    """
    if history(model):
        raise ModeError(
            f"the model has modes already: {', '.join(r.mode for r in history(model))}; use a plain one"
        )
    record = _read_record(Path(directory) / RECORD_NAME)
    records = tuple(_mode_record(data) for data in record["modes"])
    applied: list[ModeRecord] = []
    try:
        for mode in records:
            applied.append(mode)
            mode_named(mode.mode).restore(model, mode.state)
        _load(model, Path(directory) / SINGLE_NAME, record["aliases"])
    except BaseException:
        for mode in reversed(applied):
            mode_named(mode.mode).undo(model)
        raise
    set_history(model, records)
    return model


def _current(model: nn.Module, record: ModeRecord) -> ModeRecord:
    return replace(record, state=mode_named(record.mode).describe(model, record.state))


def _distinct_tensors(model: nn.Module, aliases: dict[str, str]) -> dict[str, Tensor]:
    """Return the state dict without repeated tensors, which go to `aliases` (name to first name)."""
    first_names: dict[int, str] = {}
    distinct = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in first_names:
            aliases[name] = first_names[id(tensor)]
        else:
            first_names[id(tensor)] = name
            distinct[name] = tensor
    return distinct


def _load(model: nn.Module, path: Path, aliases: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    tensors |= {alias: tensors[name] for alias, name in aliases.items()}
    expected = model.state_dict()
    problems = [f"missing {name!r}" for name in expected if name not in tensors]
    problems += [f"unexpected {name!r}" for name in tensors if name not in expected]
    problems += [
        f"{name!r} has shape {tuple(tensors[name].shape)}, the model's has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit this {type(model).__name__}: {listed(problems)}")
    with torch.no_grad():
        model.load_state_dict(tensors)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; give a folder that octavo.save wrote"
        ) from error
    version = record.get("version") if isinstance(record, dict) else None
    if version != RECORD_VERSION:
        raise ModeError(
            f"{path} has version {version}; this Octavo reads version {RECORD_VERSION}. Upgrade it"
        )
    return record  # type: ignore[no-any-return]


def _mode_record(data: dict[str, Any]) -> ModeRecord:
    record = ModeRecord(data["mode"], data["version"], data["config"], data["state"])
    newest = mode_named(record.mode).version
    if record.version > newest:
        raise ModeError(
            f"mode {record.mode!r} has version {record.version}; this Octavo reads up to {newest}"
        )
    return record
