"""Reading a compressed-tensors checkpoint: ours, and others' of one format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.model.activation_scales import state_from_scale
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.shard_reader import ShardReader, config_dtype, read_json
from octavo.core.packed import PackedTensor
from octavo.exporters.compressed_tensors.metadata import is_compressed_tensors, read_metadata
from octavo.exporters.compressed_tensors.spelling import unspell

_PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")


class CompressedTensorsCheckpoint:
    """An opened checkpoint; see `core.model.exporter.QuantizedCheckpoint`.

    Raises:
        CheckpointError: files are missing or damaged, metadata describes a format that is not read, or a tensor
            does not fit its format. File and tensor are named.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shards = ShardReader(directory)
        config = read_json(directory / "config.json")
        self._metadata = read_metadata(config, directory / "config.json")
        self.dtype = config_dtype(config, directory)
        names = self._shards.names()
        self._modules = [n.removesuffix(".weight_scale") for n in names if n.endswith(".weight_scale")]
        self.layers: dict[str, LayerFormat] = dict.fromkeys(self._modules, self._metadata.layer)

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        """Yield every parameter by name: packed where it is quantized, as it is elsewhere."""
        for module in self._modules:
            yield f"{module}.weight", self._packed(module)
        for name in self._shards.names():
            module, _, suffix = name.rpartition(".")
            if module not in self.layers or suffix not in (*_PARTS, "input_scale"):
                yield name, self._shards.tensor(name)

    def activations(self) -> dict[str, InputState]:
        """Return format and state of every activation quantizer by its full name.

        Raises:
            CheckpointError: a scale is missing or no positive number.
        """
        inputs = self._metadata.layer.inputs
        if inputs is None:
            return {}
        return {
            f"{module}.input_quantizer": InputState(inputs, self._input_state(module) if inputs.state else {})
            for module in self._modules
        }

    def cache_without_scales(self) -> dict[str, InputState]:
        """Return nothing: a quantized cache is refused when the checkpoint is opened."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""
        return {
            "dialect": "compressed_tensors",
            "format": self._metadata.format.name,
            "weights": str(self._metadata.layer.weight),
            "inputs": str(self._metadata.layer.inputs),
            "layers": len(self._modules),
            "excluded": self._metadata.ignore,
            "num_tensors": len(self._shards.names()),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _packed(self, module: str) -> PackedTensor:
        parts = [part for part in _PARTS if f"{module}.{part}" in self._shards]
        found = {part: self._shards.tensor(f"{module}.{part}") for part in parts}
        where = self._shards.where(f"{module}.weight_scale")
        return unspell(found, self._metadata.format.name, self._metadata.layer.weight, self.dtype, where)

    def _input_state(self, module: str) -> dict[str, Tensor]:
        name, spec = f"{module}.input_scale", self._metadata.layer.inputs
        assert spec is not None  # noqa: S101 (the caller asks only then)
        if name not in self._shards:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing, which its format needs")
        scale = self._shards.positive_number(name)
        return state_from_scale(scale, spec, spec.element_type.max)


def holds_compressed_tensors(directory: Path) -> bool:
    """Whether a folder holds a checkpoint of this dialect."""
    file = directory / "config.json"
    return file.is_file() and is_compressed_tensors(read_json(file))
