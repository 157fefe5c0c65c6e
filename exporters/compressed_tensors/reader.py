"""Reading a compressed-tensors checkpoint: ours, and llm-compressor's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.activation_scales import state_from_scale
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.shard_reader import ShardReader, config_dtype, read_json
from octavo.core.packed import PackedAffine, PackedTensor
from octavo.exporters.compressed_tensors.input_scales import input_scale_name, unspell_input
from octavo.exporters.compressed_tensors.metadata_reader import is_compressed_tensors, read_metadata
from octavo.exporters.compressed_tensors.spelling import CODE_DTYPES, unspell

_CODES = ("weight", "weight_packed")
_PARTS = (*_CODES, "weight_scale", "weight_global_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_INPUT_SCALES = ("input_scale", "input_global_scale")
_CACHE_SCALES = ("k_scale", "v_scale")


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
        self._groups = {
            module: self._metadata.group_of(module) for module in self._modules_with("weight_scale")
        }
        self.layers: dict[str, LayerFormat] = {module: group.layer for module, group in self._groups.items()}
        self._check_scales()

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor | PackedAffine]]:
        """Yield every parameter by name: packed where it is quantized, as it is elsewhere.

        Raises:
            CheckpointError: a tensor does not fit its format, or codes have no scale.
        """
        for module in self._groups:
            yield f"{module}.weight", self.tensor(f"{module}.weight")
        for name in self._shards.names():
            module, _, suffix = name.rpartition(".")
            if self._is_cache_scale(suffix) or (
                module in self._groups and suffix in (*_PARTS, *_INPUT_SCALES)
            ):
                continue
            yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor | PackedTensor | PackedAffine:
        """Return one of the parameters that `tensors` yields.

        Raises:
            CheckpointError: there is none of that name, it does not fit its format, or codes have no scale.
        """
        module, _, suffix = name.rpartition(".")
        if suffix == "weight" and module in self._groups:
            return self._packed(module)
        tensor = self._shards.tensor(name)
        if suffix == "weight" and tensor.dtype in CODE_DTYPES:
            raise self._without_scale(module)
        return tensor

    def activations(self) -> dict[str, InputState]:
        """Return format and state of every activation quantizer by its full name.

        Raises:
            CheckpointError: a scale is missing or no positive number.
        """
        inputs = {
            f"{module}.input_quantizer": InputState(spec, self._input_state(module, spec))
            for module, group in self._groups.items()
            if (spec := group.layer.inputs) is not None
        }
        return inputs | self._cache_states()

    def cache_without_scales(self) -> dict[str, InputState]:
        """Return what quantizes keys and values that have no scales, by quantizer: engines take the scale 1."""
        spec = self._metadata.cache
        if spec is None:
            return {}
        state = state_from_scale(torch.ones(()), spec, spec.element_type.max)
        return {f"{letter}_bmm_quantizer": InputState(spec, state) for letter in "kv"}

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""
        groups = list(self._groups.values())
        return {
            "dialect": "compressed_tensors",
            "weights": ", ".join(dict.fromkeys(str(group.layer.weight) for group in groups)),
            "inputs": ", ".join(dict.fromkeys(str(group.layer.inputs) for group in groups)),
            "cache": None if self._metadata.cache is None else str(self._metadata.cache),
            "layers": dict(Counter(group.format.name for group in self._groups.values())),
            "excluded": list(self._metadata.ignore),
            "num_tensors": len(self._shards.names()),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _modules_with(self, suffix: str) -> list[str]:
        ending = f".{suffix}"
        return [name.removesuffix(ending) for name in self._shards.names() if name.endswith(ending)]

    def _check_scales(self) -> None:
        """Refuse parts of quantized weights without `weight_scale`."""
        for suffix in (*_PARTS[1:], *_INPUT_SCALES):
            for module in self._modules_with(suffix):
                if module not in self._groups:
                    raise self._without_scale(module)

    def _without_scale(self, module: str) -> CheckpointError:
        found = [part for part in (*_PARTS, *_INPUT_SCALES) if f"{module}.{part}" in self._shards]
        return CheckpointError(
            f"{self.directory} has {listed(found)} of the quantized layer {module} and lacks {module}.weight_scale, "
            "without which its codes stand for no numbers. Copy the checkpoint again"
        )

    def _packed(self, module: str) -> PackedTensor | PackedAffine:
        group = self._groups[module]
        parts = [part for part in _PARTS if f"{module}.{part}" in self._shards]
        found = {part: self._shards.tensor(f"{module}.{part}") for part in parts}
        where = self._shards.where(f"{module}.weight_scale")
        return unspell(found, group.format.name, group.layer, self.dtype, where)

    def _input_state(self, module: str, spec: QuantSpec) -> dict[str, Tensor]:
        if not spec.state:
            return {}
        return unspell_input(spec, self._scale(f"{module}.{input_scale_name(spec)}"))

    def _scale(self, name: str) -> Tensor:
        if name not in self._shards:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing, which its format needs")
        return self._shards.positive_number(name)

    def _is_cache_scale(self, suffix: str) -> bool:
        return self._metadata.cache is not None and suffix in _CACHE_SCALES

    def _cache_states(self) -> dict[str, InputState]:
        spec, states = self._metadata.cache, {}
        if spec is not None:
            scaled = [module for suffix in _CACHE_SCALES for module in self._modules_with(suffix)]
            for attention in dict.fromkeys(scaled):
                for letter in "kv":  # one without the other is missing something
                    state = state_from_scale(
                        self._scale(f"{attention}.{letter}_scale"), spec, spec.element_type.max
                    )
                    states[f"{attention}.{letter}_bmm_quantizer"] = InputState(spec, state)
        return states


def holds_compressed_tensors(directory: Path) -> bool:
    """Whether a folder holds a checkpoint of this dialect."""
    file = directory / "config.json"
    return file.is_file() and is_compressed_tensors(read_json(file))
