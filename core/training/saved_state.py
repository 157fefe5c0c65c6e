"""The state of a training in a loop of one's own, on disk: model, optimizer and step, of any number of ranks.

Each rank writes what it alone has (its parts of what FSDP2 divides); what is the same on every rank is written once.
The files are safetensors and JSON, which hold no code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from octavo.core.errors import CheckpointError, UnsupportedError
from octavo.core.model.background import flush_to_disk
from octavo.core.model.sharded import is_dtensor, is_sharded, local_part
from octavo.core.ranks.world import num_ranks, rank, wait_for_all
from octavo.core.training.recipe import BUFFER

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_VERSION = 1
_FIELDS = {"step", "ranks", "parts", "optimizer"}
_FACTS = "octavo_training.json"
_SHARED = "same_on_all_ranks.safetensors"
_MODEL, _OPTIMIZER = "model.", "optimizer."


def save_training(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write all that `load_training` needs to go on after `step` finished steps; every rank calls it.

    The folder, on a disk that all ranks see, appears when it is whole: a rank that is killed meanwhile leaves what was
    there before.

    Args:
        folder: A new folder; parents are created.
        model: The model, also under DDP or divided by FSDP2.
        optimizer: Its optimizer.
        step: Finished steps.

    Raises:
        CheckpointError: the folder exists, or cannot be written.
        UnsupportedError: the model is DeepSpeed's, whose engine has a `save_checkpoint` of its own.
    """
    folder = Path(folder).resolve()
    partial = folder.with_name(f".{folder.name}.partial")
    _check_kind(model)
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; give a new folder, one for each step")
    try:
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        wait_for_all()
        _write(partial, model, optimizer, step)
        wait_for_all()
        if rank() == 0:
            flush_to_disk(partial)
            partial.rename(folder)
            flush_to_disk(folder.parent)
        wait_for_all()
    except OSError as error:
        raise CheckpointError(
            f"rank {rank()} cannot write {folder}: {error}; all ranks need a disk that they share, with room for it"
        ) from error


def load_training(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Read what `save_training` wrote into a model and its optimizer; every rank calls it.

    The model is made as the saved one was, wrapped in the same way, on as many ranks; `QuantizedTraining`, where it
    took part, is made before, and compares its recipe.

    Returns:
        The finished steps, for `QuantizedTraining.begin`.

    Raises:
        CheckpointError: there is no such checkpoint, it is of another number of ranks or of another model, or was
            trained by another recipe.
    """
    folder = Path(folder)
    facts = _facts(folder)
    stored = _read(folder / _SHARED) | (_read(folder / _file_of(rank())) if facts["parts"] else {})
    _check_quantizers(folder, stored, model)
    try:
        model.load_state_dict(_model_state(stored, model))
    except RuntimeError as error:  # names and shapes, which it lists
        raise CheckpointError(f"{folder} is of another model: {error}") from error
    try:
        optimizer.load_state_dict(_optimizer_state(facts["optimizer"], stored, optimizer))
    except (LookupError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has the state of another optimizer than this {type(optimizer).__name__}: {error}; make it as it "
            "was, after the model's quantizers and after what wraps the model"
        ) from error
    return int(facts["step"])


def last_training(folder: str | Path) -> Path | None:
    """Return the subfolder that `save_training` wrote at the highest step, or None; unfinished ones are passed over."""
    found = [path.parent for path in Path(folder).glob(f"*/{_FACTS}") if not path.parent.name.startswith(".")]
    return max(found, key=lambda path: int(_facts(path, any_ranks=True)["step"]), default=None)


def _check_kind(model: nn.Module) -> None:
    foreign = [n for n, one in model.named_parameters() if is_sharded(one) and not is_dtensor(one)]
    if foreign:
        raise UnsupportedError(
            f"{len(foreign)} parameters (first {foreign[0]!r}) are divided by DeepSpeed; save with its engine's "
            "save_checkpoint, which carries quantizers, too"
        )


def _write(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    from safetensors.torch import save_file

    ours = dict(model.state_dict(keep_vars=True))
    everything = {f"{_MODEL}{name}": ours[name] for name in _first_names(ours).values()}
    found = optimizer.state_dict()
    settings: dict[str, dict[str, Any]] = {}
    for index, values in found["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                everything[f"{_OPTIMIZER}{index}.{key}"] = value
            else:
                settings.setdefault(str(index), {})[key] = value
    parts = {name: local_part(tensor).detach() for name, tensor in everything.items() if is_dtensor(tensor)}
    if parts:
        _save(parts, folder / _file_of(rank()), save_file)
    if rank() == 0:
        same = {name: tensor.detach() for name, tensor in everything.items() if not is_dtensor(tensor)}
        _save(same, folder / _SHARED, save_file)
        facts = {
            "version": _VERSION,
            "step": step,
            "ranks": num_ranks(),
            "parts": bool(parts),
            "optimizer": {"param_groups": found["param_groups"], "settings": settings},
        }
        (folder / _FACTS).write_text(_json(facts), encoding="utf-8")
        flush_to_disk(folder / _FACTS)


def _save(tensors: Mapping[str, Tensor], path: Path, save_file: Any) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    flush_to_disk(path)


def _json(facts: Mapping[str, Any]) -> str:
    try:
        return json.dumps(facts)
    except TypeError as error:
        raise UnsupportedError(
            f"the optimizer has a setting that is neither a number nor a text: {error}; give it as a number (lr=1e-4), "
            "or save its state yourself"
        ) from error


def _file_of(number: int) -> str:
    return f"rank_{number}_of_{num_ranks()}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _facts(folder: Path, any_ranks: bool = False) -> dict[str, Any]:
    path = folder / _FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no training state that can be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("version") != _VERSION or not facts.keys() >= _FIELDS:
        raise CheckpointError(f"{path} is damaged, or of another version; expected version {_VERSION}")
    if not any_ranks and facts["ranks"] != num_ranks():
        raise CheckpointError(
            f"{folder} was saved by {facts['ranks']} ranks, and there are {num_ranks()} now; resume on as many, or "
            "export the model and start a new run with its weights"
        )
    return facts


def _check_quantizers(folder: Path, stored: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse what was trained with quantizers for a model without, and the other way round."""
    there, here = (any(n.endswith(BUFFER) for n in names) for names in (stored, dict(model.named_buffers())))
    if there != here:
        words = {True: "with quantizers", False: "without quantizers"}
        raise CheckpointError(
            f"{folder} was trained {words[there]}, and the model is {words[here]}; make octavo.QuantizedTraining "
            "before loading where it took part, and only there"
        )


def _model_state(stored: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return what `load_state_dict` takes: tied tensors under all of their names, and what only the file knows."""
    ours = dict(model.state_dict(keep_vars=True))
    state = {n.removeprefix(_MODEL): tensor for n, tensor in stored.items() if n.startswith(_MODEL)}
    first = _first_names(ours)
    found = {n: _like(state[first[id(t)]], t) for n, t in ours.items() if first[id(t)] in state}
    return {**state, **found}


def _first_names(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Return {id of a tensor: the first of its names}."""
    return {id(tensor): name for name, tensor in reversed(list(tensors.items()))}


def _like(stored: Tensor, ours: Tensor) -> Tensor:
    """Return a stored tensor as this rank's part of what `ours` is a part of, where it is."""
    if not is_dtensor(ours):
        return stored
    from torch.distributed.tensor import DTensor

    whole = cast("DTensor", ours)
    return DTensor.from_local(
        stored.to(whole.device),
        whole.device_mesh,
        whole.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def _optimizer_state(
    saved: Mapping[str, Any], stored: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(found) for index, found in saved["settings"].items()}
    for name, tensor in stored.items():
        if name.startswith(_OPTIMIZER):
            index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
            parameter = parameters[int(index)]
            is_part = (
                is_dtensor(parameter) and tensor.shape == local_part(parameter).shape and tensor.dim() > 0
            )
            state.setdefault(int(index), {})[key] = _like(tensor, parameter) if is_part else tensor
    return {"state": state, "param_groups": saved["param_groups"]}
