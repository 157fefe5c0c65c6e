"""Distributed checkpoints of quantized models, saved by one layout of ranks and loaded by another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from octavo.adapters.megatron_core.checks import check_unwrapped, check_version
from octavo.adapters.megatron_core.record import CHILD, KEY, device_of, records_for
from octavo.adapters.megatron_core.texts import of_all_ranks, to_text
from octavo.core.errors import CheckpointError, ModeError, listed
from octavo.core.model.atomic_folder import atomic_folder, check_place
from octavo.core.modes.record import history, set_history
from octavo.core.modes.registry import mode_named

_FORMAT = ("torch_dist", 1)
_MARK = "octavo_megatron.json"  # by which a later save knows that it may replace the folder
_LAYOUT = {"non_homogeneous_layers": True}  # layers may be quantized differently, so that none are stacked


def save(
    model: nn.Module,
    directory: str | Path,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Save a model's tensors, and the record of its modes, by Megatron-core's `dist_checkpointing`; collective.

    The folder appears whole or not at all. Ranks of any layout load it by `load`; Megatron-core's own loading finds the
    weights in it. A script that saves by itself (`model.sharded_state_dict()` and `dist_checkpointing.save`) saves
    quantizers and record, too.

    Args:
        model: This rank's part of a model, not wrapped; quantized or plain.
        directory: A new or empty folder that all ranks reach.
        metadata: Of the sharded state dict and the checkpoint, as Megatron-core takes it. By default layers are stored
            one by one (`non_homogeneous_layers`), since a config may quantize them differently.
        overwrite: Replace a folder that this function wrote.

    Raises:
        UnsupportedError: Megatron-core is too old, or `model` wraps one.
        ModeError: the model is finalized for a dialect.
        ExportError: the folder is not empty or cannot be written.
    """
    from megatron.core import dist_checkpointing

    check_version()
    check_unwrapped(model)
    directory, content = Path(directory), {**_LAYOUT, **(metadata or {})}
    sharded = _sharded(model, content)
    check_place(directory.resolve(), overwrite)
    dist.barrier()  # every rank has looked, before the first one writes
    with ExitStack() as stack:
        folder = ""
        if dist.get_rank() == 0:
            temporary = stack.enter_context(atomic_folder(directory, overwrite))
            folder = str(temporary)
        folder = of_all_ranks(folder, device_of(model))[0]
        dist_checkpointing.save(sharded, folder, _FORMAT, content_metadata=content)
        if dist.get_rank() == 0:
            modes = [record.mode for record in history(model)]
            (Path(folder) / _MARK).write_text(json.dumps({"modes": modes}) + "\n", encoding="utf-8")
        dist.barrier()
    dist.barrier()  # the folder is in its place


def load(model: nn.Module, directory: str | Path) -> nn.Module:
    """Apply the modes of a distributed checkpoint to a plain model, and load its tensors; collective.

    Args:
        model: This rank's part of a plain model, of any layout; not wrapped. Changed in place. Where loading is
            refused, its classes are as they were.
        directory: What `save` wrote, or a script of Megatron-core's; a checkpoint of a plain model is loaded as it is.

    Returns:
        `model`.

    Raises:
        UnsupportedError: Megatron-core is too old, `model` wraps one, or blocks would lie on two ranks.
        CheckpointError: this is no distributed checkpoint, it is damaged, or tensors do not fit the model.
        ModeError: `model` has modes already, or lacks a recorded layer.
    """
    _check_plain(model)
    with _plain_again_on_failure(model):
        attach_modes_of(model, directory)
        _load_tensors(model, Path(directory))
    return model


def attach_modes_of(model: nn.Module, directory: str | Path) -> None:
    """Give a plain model the structure that a checkpoint's record says, uncalibrated, for a script that loads it.

    The checkpoint of a plain model changes nothing. Collective; all else as in `load`.
    """
    _check_plain(model)
    stored = _stored_tensors(Path(directory))
    if KEY in stored:
        with _plain_again_on_failure(model):
            _attach(model, Path(directory), stored[KEY])


def _check_plain(model: nn.Module) -> None:
    check_version()
    check_unwrapped(model)
    if history(model):
        raise ModeError(
            f"the model has modes already: {', '.join(r.mode for r in history(model))}; load into a plain one, which "
            "gets those of the checkpoint"
        )


@contextmanager
def _plain_again_on_failure(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for record in reversed(history(model)):
            mode_named(record.mode).undo(model)
        set_history(model, ())
        raise


def _attach(model: nn.Module, directory: Path, stored: Any) -> None:
    """Give a plain model the structure that the record says."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    content = torch.empty(stored.global_shape, dtype=torch.uint8, device=device_of(model))
    wanted = {KEY: ShardedTensor.from_rank_offsets(KEY, content, replica_id=dist.get_rank())}
    text = to_text(dist_checkpointing.load(wanted, str(directory))[KEY])
    for record in records_for(model, text, str(directory)):
        set_history(model, (*history(model), record))
        mode_named(record.mode).restore(model, record.state)


def _load_tensors(model: nn.Module, directory: Path) -> None:
    from megatron.core import dist_checkpointing

    stored = _stored_tensors(directory)
    content = dist_checkpointing.load_content_metadata(str(directory)) or {}
    sharded = _sharded(model, content)
    sharded.pop(KEY, None)
    _check_fits(model, directory, sharded, stored)
    loaded = dist_checkpointing.load(sharded, str(directory))
    found = model.load_state_dict({name: loaded[name] for name in sharded}, strict=False)
    wrong = [name for name in (*found.missing_keys, *found.unexpected_keys) if "_extra_state" not in name]
    if wrong:
        raise CheckpointError(f"{directory} does not fit this {type(model).__name__}: {listed(wrong)}")
    for record in history(model):
        mode_named(record.mode).commit(model)


def _sharded(model: nn.Module, content: Mapping[str, Any]) -> dict[str, Any]:
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    sharded: dict[str, Any] = model.sharded_state_dict(metadata={**content, "dp_cp_group": group})  # type: ignore[operator]
    return sharded


def _stored_tensors(directory: Path) -> Mapping[str, Any]:
    """Return {key: what is stored of it} of a distributed checkpoint."""
    from megatron.core import dist_checkpointing

    if not dist_checkpointing.check_is_distributed_checkpoint(str(directory)):
        what = "is no distributed checkpoint" if directory.is_dir() else "does not exist"
        raise CheckpointError(
            f"{directory} {what}: it has no metadata.json that says how tensors are divided, so that no other layout "
            "of ranks can load it; save with Megatron's checkpoint format torch_dist"
        )
    found: Mapping[str, Any] = dist_checkpointing.load_tensors_metadata(str(directory))
    return found


def _check_fits(
    model: nn.Module, directory: Path, sharded: Mapping[str, Any], stored: Mapping[str, Any]
) -> None:
    """Refuse, on every rank, tensors that a rank needs and the checkpoint lacks, or has in another shape.

    Megatron-core itself finds them on one rank, while the others wait.
    """
    own = list(_differences(sharded, stored))
    texts = of_all_ranks(json.dumps(own), device_of(model))
    problems = sorted({problem for text in texts for problem in json.loads(text)})
    if not problems:
        return
    hint = ""
    if CHILD in model._modules and KEY not in stored:
        hint = ". It was saved from a plain model: load it into one, and quantize that"
    raise CheckpointError(
        f"{directory} does not fit this {type(model).__name__}: {listed(problems, 3)}{hint}"
    )


def _differences(sharded: Mapping[str, Any], stored: Mapping[str, Any]) -> Iterator[str]:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    for value in sharded.values():
        parts = value.build() if isinstance(value, ShardedTensorFactory) else [value]
        for tensor in (one for one in parts if isinstance(one, ShardedTensor)):
            if tensor.key not in stored:
                yield f"missing {tensor.key!r}"
            elif tuple(stored[tensor.key].global_shape) != tuple(tensor.global_shape):
                yield (
                    f"{tensor.key!r} has shape {tuple(stored[tensor.key].global_shape)}, the model's has "
                    f"{tuple(tensor.global_shape)}"
                )
