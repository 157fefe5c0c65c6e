"""The weights of a model on the meta device: some of them loaded from the checkpoint, and dropped again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo.core.errors import CheckpointError, listed
from octavo.core.model.checkpoint_layout import CheckpointLayout, Place
from octavo.core.model.shard_reader import ShardReader
from octavo.core.streaming.source_headers import FLOATS, SourceHeaders


class SourceWeights:
    """Loads tensors of a model, by their names in it.

    Args:
        model: The model, as its checkpoint is loaded, on the meta device.
        headers: What the checkpoint holds.
        layout: Where its tensors are in the model.

    Attributes:
        leftover: Tensors of the checkpoint that the model has no place for.

    Raises:
        CheckpointError: the checkpoint lacks a tensor of the model, or has one of another shape or of no float dtype.
            File and tensor are named.
    """

    def __init__(self, model: nn.Module, headers: SourceHeaders, layout: CheckpointLayout) -> None:
        self._model = model
        self._headers = headers
        state: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self._meta = {name: tensor for name, tensor in state.items() if name in set(_own_names(layout))}
        self._places: dict[int, list[tuple[str, Place]]] = {}
        self._holders: dict[int, list[str]] = {}
        for name, tensor in self._meta.items():
            self._holders.setdefault(id(tensor), []).append(name)
        places = layout.places()
        for new, place in places.items():
            if new in headers.tensors:
                self._places.setdefault(id(self._meta[place.name]), []).append((new, place))
        _check(headers, self._meta, places, self._holders)
        self.leftover = sorted(headers.tensors.keys() - places.keys())

    def load(self, names: Iterable[str]) -> list[str]:
        """Give parameters and buffers their values; return the checkpoint's names of what was read.

        Tied ones get the same. Files are closed afterwards, so that their pages do not pile up in memory.

        Raises:
            CheckpointError: the checkpoint has changed, or cannot be read; the file is named.
        """
        read: list[str] = []
        self._headers.check_unchanged()
        reader = ShardReader(self._headers.directory)
        keys = dict.fromkeys(id(self._meta[name]) for name in names)
        for key in keys:
            holders = self._holders[key]
            meta = self._meta[holders[0]]
            loaded = self._values(reader, meta, self._places[key])
            value = nn.Parameter(loaded, meta.requires_grad) if isinstance(meta, nn.Parameter) else loaded
            for name in holders:
                _place(self._model, name, value)
            read += [new for new, _ in self._places[key]]
        return read

    def drop(self, names: Iterable[str]) -> None:
        """Put parameters and buffers back on the meta device."""
        for name in names:
            meta = self._meta[name]
            for holder in self._holders[id(meta)]:
                _place(self._model, holder, meta)

    def names(self) -> Collection[str]:
        """Return the names, in the model, of all that can be loaded."""
        return self._meta.keys()

    def meta(self, name: str) -> Tensor:
        """Return a parameter or buffer without its values."""
        return self._meta[name]

    def raw(self, name: str) -> Tensor:
        """Return a tensor of the checkpoint as it is there."""
        return ShardReader(self._headers.directory).tensor(name)

    def _values(self, reader: ShardReader, meta: Tensor, sources: list[tuple[str, Place]]) -> Tensor:
        whole = [new for new, place in sources if place.index is None]
        if whole:
            value: Tensor = reader.tensor(whole[0])
            for other in whole[1:]:
                if not torch.equal(value, reader.tensor(other)):
                    raise CheckpointError(
                        f"{reader.where(other)} differs from {reader.where(whole[0])}, to which the model ties it; "
                        "say in config.json whether they are tied"
                    )
            return value.to(meta.dtype)
        value = torch.empty(meta.shape, dtype=meta.dtype)
        for new, place in sources:
            place.of(value).copy_(reader.tensor(new))
        return value


def config_file(directory: Path) -> Path:
    """Return the file that says what the model is."""
    return directory / "config.json"


def _own_names(layout: CheckpointLayout) -> Iterable[str]:
    return (place.name for place in layout.places().values())


def _place(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, own_name = name.rpartition(".")
    module = model.get_submodule(owner)
    tensors = module._parameters if own_name in module._parameters else module._buffers
    tensors[own_name] = value  # type: ignore[assignment]


def _check(
    headers: SourceHeaders, meta: dict[str, Tensor], places: dict[str, Place], holders: dict[int, list[str]]
) -> None:
    known = {
        (id(meta[place.name]), place.index, place.segment)
        for new, place in places.items()
        if new in headers.tensors
    }
    missing = [
        new
        for new, place in places.items()
        if (id(meta[place.name]), place.index, place.segment) not in known
    ]
    if missing:
        raise CheckpointError(
            f"{headers.directory} lacks {len(missing)} tensors of the model that {config_file(headers.directory)} "
            f"describes: {listed(missing)}"
        )
    for new, place in places.items():
        if new not in headers.tensors:
            continue
        found, expected = headers.tensors[new], tuple(place.of(meta[place.name]).shape)
        if found.shape != expected:
            raise CheckpointError(
                f"{headers.where(new)} has the shape {list(found.shape)}; {config_file(headers.directory)} describes a "
                f"model in which it is {list(expected)}"
            )
        if meta[place.name].is_floating_point() and found.dtype not in FLOATS:
            raise CheckpointError(
                f"{headers.where(new)} is {found.dtype}, expected one of {', '.join(FLOATS)}: it seems to be quantized "
                "already"
            )
