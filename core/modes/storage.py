"""Saving a model with its modes, and restoring them on a plain model: safetensors and versioned JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo.core.errors import CheckpointError, ExportError, ModeError, UnsupportedError, listed
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.shard_reader import ShardReader, read_json
from octavo.core.model.sharded import sharded_names
from octavo.core.model.shards import SafetensorsWriter, check_shard_limit
from octavo.core.modes.record import history, set_history, with_history
from octavo.core.modes.registry import mode_named
from octavo.core.modes.saved_record import (
    HF_METHOD,
    RECORD_NAME,
    SavedRecord,
    describe_modes,
    read_record,
)
from octavo.core.modules import dense_names
from octavo.core.plugins import plugins


def save(
    model: nn.Module, directory: str | Path, overwrite: bool = False, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Save a model's tensors and the record of its modes, for `restore`.

    The folder appears whole or not at all. Tied tensors are written once. Where an adapter writes the model's config
    beside them, the framework can load the folder, too (see `octavo.enable_huggingface`).

    Args:
        model: A model that modes were applied to (`quantize`, …); a plain one is saved with an empty record.
        directory: A new or empty folder.
        overwrite: Replace a folder that Octavo wrote.
        max_shard_bytes: Largest size of a weight file; a larger model is split into shards with an index, and no more
            than one shard is copied to the CPU at a time.

    Raises:
        ModeError: the model is finalized for a dialect, or its modes are those of a module in it.
        ExportError: parameters are sharded among ranks, `max_shard_bytes` is no size, the state dict holds something
            else than tensors, or the folder is not empty or cannot be written.
    """
    check_shard_limit(max_shard_bytes)
    sharded = sharded_names(model)
    if sharded:
        raise ExportError(
            f"{len(sharded)} parameters are sharded (first {sharded[0]!r}), and this rank has a part of each; save the "
            "model before it is sharded, or load its full state dict into one that is not, and save that"
        )
    _check_owner(model)
    record = describe_modes(model)
    tensors, aliases = _distinct_tensors(model)
    with atomic_folder(Path(directory), overwrite) as folder:
        writer = SafetensorsWriter(folder, max_shard_bytes, reads_back=True)
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish()
        text = json.dumps({**record, "aliases": aliases}, indent=2)
        (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
        _write_companions(model, folder)


def restore(model: nn.Module, directory: str | Path) -> nn.Module:
    """Apply the modes that `save` recorded to a plain model, and load its tensors.

    Args:
        model: A model of the class and dtype that was saved, with no modes applied; changed in place. When
            restoring fails it is as it was.
        directory: What `save` wrote.

    Returns:
        `model`.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit the model.
        ModeError: `model` has modes already, lacks a recorded layer, or the record is of a newer version.
        UnsupportedError: a recorded layer's class has no quantized class.
    """
    if history(model):
        raise ModeError(
            f"the model has modes already: {', '.join(r.mode for r in history(model))}; use a plain one"
        )
    saved = read_record(Path(directory))
    try:
        attach_modes(model, saved)
        load_tensors(model, Path(directory), saved)
    except BaseException:
        for record in reversed(history(model)):
            mode_named(record.mode).undo(model)
        set_history(model, ())
        raise
    return model


def attach_modes(model: nn.Module, saved: SavedRecord) -> None:
    """Give a plain model, on any device, the structure that its modes describe; tensors are loaded afterwards.

    Raises:
        OctavoError: as in `restore`; the model is then changed in part.
    """
    for record in saved.modes:
        set_history(model, (*history(model), record))
        mode_named(record.mode).restore(model, record.state)


def _write_companions(model: nn.Module, folder: Path) -> None:
    with dense_names(model):
        dtypes = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    if dtypes:
        plugins().write_companions(model, folder, None, dtypes[0])
    path = folder / "config.json"
    if path.is_file() and history(model):
        config = {**read_json(path), "quantization_config": {"quant_method": HF_METHOD}}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _check_owner(model: nn.Module) -> None:
    """Refuse what wraps a model with modes: the record would be empty, and the names of tensors others."""
    owner = with_history(model)
    if owner is not model:
        (name,) = (name for name, module in model.named_modules() if module is owner)
        raise ModeError(
            f"the modes are those of {name!r}, a {type(owner).__name__} inside this {type(model).__name__}; save "
            "that one, before adapters are put into it, and the adapters by what made them (PEFT's save_pretrained)"
        )


def _distinct_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict without repeated tensors, and the names of these (name to first name)."""
    first_names: dict[int, str] = {}
    distinct, aliases = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"{name} is a {type(tensor).__name__}; only tensors can be saved: keep it in a buffer, or remove the "
                "module that puts it into the state dict"
            )
        if id(tensor) in first_names:
            aliases[name] = first_names[id(tensor)]
        else:
            first_names[id(tensor)] = name
            distinct[name] = tensor
    return distinct, aliases


def load_tensors(model: nn.Module, directory: Path, saved: SavedRecord) -> None:
    """Load what `attach_modes` made room for.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit the model.
        UnsupportedError: the framework's `save_pretrained` took tensors of the model apart.
    """
    reader, expected = ShardReader(directory), model.state_dict(keep_vars=True)
    names = _names_in_framework(model, list(expected)) if saved.is_framework else {}
    tensors = {names.get(name, name): reader.tensor(name) for name in reader.names()}
    aliases = _tied(expected, tensors) if saved.is_framework else saved.aliases
    tensors |= {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
    wanted = dict.fromkeys([*expected, *aliases.values()])
    problems = [f"missing {name!r}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name!r}" for name in tensors if name not in expected]
    for name, tensor in expected.items():
        if name in tensors:
            problems += _differences(name, tensors[name], tensor)
    if problems:
        raise CheckpointError(f"{directory} does not fit this {type(model).__name__}: {listed(problems)}")
    with torch.no_grad():
        model.load_state_dict(tensors)
    for record in saved.modes:
        mode_named(record.mode).commit(model)


def _names_in_framework(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return {name in the framework's checkpoints: the model's own}."""
    layout = plugins().checkpoint_layout(model, names)
    if layout.parts:
        raise UnsupportedError(
            f"save_pretrained takes {listed(list(layout.parts), 2)} apart; write such a model with octavo.save"
        )
    return {new: own for own, new in layout.names.items()}


def _tied(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors that are missing and tied to one that is there, with its name."""
    there = {id(tensor): name for name, tensor in expected.items() if name in tensors}
    return {name: there[id(t)] for name, t in expected.items() if name not in tensors and id(t) in there}


def _differences(name: str, found: Tensor, wanted: Tensor) -> Iterator[str]:
    if found.shape != wanted.shape:
        yield f"{name!r} has shape {tuple(found.shape)}, the model's has {tuple(wanted.shape)}"
    elif found.dtype != wanted.dtype:
        yield f"{name!r} has dtype {found.dtype}, the model's has {wanted.dtype} (convert the plain model first)"
