"""A checkpoint that has no config of its framework, held against the model of one that the user gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.errors import CheckpointError, listed
from octavo.core.model.exporter import InputState, QuantizedCheckpoint
from octavo.core.model.skeleton import Skeleton
from octavo.core.packed import PackedAffine, PackedChain, PackedTensor


class FittedCheckpoint:
    """A checkpoint whose tensors are those of a model; see `core.model.exporter.QuantizedCheckpoint`.

    Rows of zeros that another dialect appends to the vocabulary are left out.

    Args:
        checkpoint: What is read.
        config: Folder with the framework's config of the model, whose weights are not read.
    """

    def __init__(self, checkpoint: QuantizedCheckpoint, config: Path) -> None:
        self._checkpoint, self._config = checkpoint, config
        self.directory, self.dtype, self.layers = checkpoint.directory, checkpoint.dtype, checkpoint.layers
        layers = checkpoint.layers
        self._skeleton = Skeleton.of(
            config, checkpoint.dtype, lambda matrix: matrix.removesuffix(".weight") in layers
        )
        self._shapes = self._skeleton.shapes()

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor | PackedChain | PackedAffine]]:
        """Yield every parameter by name, in the model's shape.

        Raises:
            CheckpointError: the model has no such parameter, or one of another shape.
        """
        for name, value in self._checkpoint.tensors():
            if name not in self._shapes:
                raise CheckpointError(f"{self._differs()}: {name} has no place in it")
            yield name, self._fitted(name, value)

    def activations(self) -> dict[str, InputState]:
        """Return format and state of every activation quantizer by its full name in the checkpoint."""
        return self._checkpoint.activations()

    def cache_without_scales(self) -> dict[str, InputState]:
        """Return what quantizes keys and values of attention layers that `activations` has nothing for."""
        return self._checkpoint.cache_without_scales()

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""
        return self._checkpoint.describe()

    def check_complete(self, names: set[str]) -> None:
        """Refuse a checkpoint whose tensors are called `names` where the model has more.

        Raises:
            CheckpointError: the model has others; they are named.
        """
        if missing := self._skeleton.missing(names):
            raise CheckpointError(f"{self._differs()}: {listed(missing)} are missing")

    def _fitted(
        self, name: str, value: Tensor | PackedTensor | PackedChain | PackedAffine
    ) -> Tensor | PackedTensor | PackedChain | PackedAffine:
        found, expected = _shape(value), self._shapes[name]
        if found == expected:
            return value
        is_padded = isinstance(value, Tensor) and found[1:] == expected[1:] and found[:1] > expected[:1]
        if isinstance(value, Tensor) and is_padded and not value[expected[0] :].any():
            return value[: expected[0]]
        raise CheckpointError(
            f"{self._differs()}: {name} has shape {list(found)} here and {list(expected)} there"
        )

    def _differs(self) -> str:
        return f"{self.directory} is not a checkpoint of the model whose config is in {self._config}"


def _shape(value: Tensor | PackedTensor | PackedChain | PackedAffine) -> tuple[int, ...]:
    if isinstance(value, PackedChain):
        return value.first.shape
    return value.codes.shape if isinstance(value, PackedAffine) else tuple(value.shape)
