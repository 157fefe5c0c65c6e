"""Reading a checkpoint of INT weights in another tool's layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError, listed
from octavo.core.formats.packing import pack
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.shard_reader import ShardReader, config_dtype, read_json
from octavo.core.packed import PackedAffine, PackedTensor
from octavo.exporters.foreign.layout import Layout, Unpacked


class IntegerCheckpoint:
    """An opened checkpoint; see `core.model.exporter.QuantizedCheckpoint`.

    Raises:
        CheckpointError: files are missing or damaged, or a quantized layer lacks a tensor; it is named.
    """

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.directory = directory
        self._layout = layout
        self._shards = ShardReader(directory)
        self.dtype = config_dtype(read_json(directory / "config.json"), directory)
        places = [name.rpartition(".") for name in self._shards.names()]
        modules = dict.fromkeys(module for module, _, suffix in places if suffix in layout.parts)
        for module in modules:
            self._check_complete(module)
        if not modules:
            raise CheckpointError(
                f"{directory} has no quantized layer: no tensor is called {layout.parts[0]}"
            )
        self.layers: dict[str, LayerFormat] = dict.fromkeys(modules, layout.format.layer)

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor | PackedAffine]]:
        """Yield every parameter by name: packed where it is quantized, as it is elsewhere.

        Raises:
            CheckpointError: a tensor does not fit the format.
        """
        for module in self.layers:
            yield f"{module}.weight", self.tensor(f"{module}.weight")
        for name in self._shards.names():
            module, _, suffix = name.rpartition(".")
            if module not in self.layers or suffix not in self._layout.parts:
                yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor | PackedTensor | PackedAffine:
        """Return one of the parameters that `tensors` yields.

        Raises:
            CheckpointError: there is none of that name, or it does not fit the format.
        """
        module, _, suffix = name.rpartition(".")
        is_quantized = suffix == "weight" and module in self.layers
        return self._weight(module) if is_quantized else self._shards.tensor(name)

    def activations(self) -> dict[str, InputState]:
        """Return nothing: these layouts quantize weights only."""
        return {}

    def cache_without_scales(self) -> dict[str, InputState]:
        """Return nothing, as above."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""
        layout = self._layout.format
        return {
            "dialect": self._layout.name.lower(),
            "weights": str(layout.layer.weight),
            "zero_points": layout.layer.zero_points,
            "layers": len(self.layers),
            "num_tensors": len(self._shards.names()),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _check_complete(self, module: str) -> None:
        parts = [part for part in self._layout.parts if part not in self._layout.optional]
        missing = [f"{module}.{part}" for part in parts if f"{module}.{part}" not in self._shards]
        if missing:
            raise CheckpointError(
                f"{self.directory} lacks {listed(missing)}: a layer in {self._layout.name}'s layout has "
                f"{', '.join(parts)}. Copy the checkpoint again"
            )

    def _weight(self, module: str) -> PackedTensor | PackedAffine:
        names = {part: f"{module}.{part}" for part in self._layout.parts}
        found = {part: self._shards.tensor(name) for part, name in names.items() if name in self._shards}
        where = f"{self.directory}: {module}."
        unpacked = self._layout.unpack(found, where)
        self._check(unpacked, where)
        return (
            self._symmetric(unpacked, where) if self._layout.format.is_symmetric else self._affine(unpacked)
        )

    def _check(self, unpacked: Unpacked, where: str) -> None:
        rows, columns = unpacked.codes.shape
        groups = -(-columns // (self._layout.format.group_size or columns))
        for part, tensor in (("scales", unpacked.scale), ("qzeros", unpacked.zero_point)):
            if tuple(tensor.shape) != (rows, groups):
                raise CheckpointError(
                    f"{where}{part} must be for {groups} groups of {rows} output channels, found "
                    f"{tuple(tensor.T.shape)}"
                )
        scale = unpacked.scale
        if not scale.is_floating_point() or not (scale.isfinite() & (scale > 0)).all():
            raise CheckpointError(f"{where}scales must be positive numbers; found others, in {scale.dtype}")

    def _affine(self, unpacked: Unpacked) -> PackedAffine:
        codes = self._packed(unpacked.codes, unpacked.scale)
        return PackedAffine(codes, unpacked.zero_point.reshape(codes.scale.shape))

    def _symmetric(self, unpacked: Unpacked, where: str) -> PackedTensor:
        middle = 1 << (self._layout.format.bits - 1)
        others = unpacked.zero_point[unpacked.zero_point != middle]
        if len(others):
            raise CheckpointError(
                f"{where}qzeros: config.json says that the codes are symmetric, whose zero point is {middle}; found "
                f"{int(others[0])}. Is it written in another version of the layout than config.json says?"
            )
        return self._packed(unpacked.codes ^ middle, unpacked.scale)  # two's complement

    def _packed(self, codes: Tensor, scale: Tensor) -> PackedTensor:
        spec, shape = self._layout.format.layer.weight, (codes.shape[0], codes.shape[1])
        scale = scale.to(torch.float32).reshape(spec.granularity.scale_shape(shape))
        return PackedTensor(pack(codes, spec.element_type.bits), scale, None, spec, shape, self.dtype)
