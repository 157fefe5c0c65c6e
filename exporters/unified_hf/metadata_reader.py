"""Reading the JSON description of a checkpoint, in either of its two files and either of its two shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.model.shard_reader import read_json
from octavo.exporters.unified_hf.caches import CACHES, NVFP4_AFFINE
from octavo.exporters.unified_hf.metadata import MIXED

NESTED_FILE = "hf_quant_config.json"
_CACHE_NAMES = {4: "NVFP4", 8: "FP8"}  # by the bits of the flat shape's description


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of its formats.

    Attributes:
        directory: The checkpoint.
        quant_algo: Format of all quantized layers, MIXED_PRECISION, or None when only the cache is quantized.
        group_size: Block length, or None where it is not said.
        cache: Format of keys and values in the cache, `FP8`, `NVFP4` or `NVFP4_AFFINE`, or None.
        exclude: Layers that are left out.
        layers: `quant_algo` and perhaps `group_size` of each layer of a mixed checkpoint.
    """

    directory: Path
    quant_algo: str | None
    group_size: int | None
    cache: str | None
    exclude: list[str]
    layers: Mapping[str, Mapping[str, Any]]

    def quant_algo_of(self, module: str) -> str:
        """Return the format of a layer that has a scale.

        Raises:
            CheckpointError: the metadata says none.
        """
        if self.quant_algo is None:
            raise CheckpointError(
                f"{self.directory}: {module} has a weight_scale and the checkpoint names no quant_algo"
            )
        if self.quant_algo.upper() != MIXED:
            return self.quant_algo
        layer = self._layer(module)
        if layer is None:
            raise CheckpointError(
                f"{self.directory}: {module} has a weight_scale and is not in quantized_layers"
            )
        return str(layer["quant_algo"])

    def group_size_of(self, module: str) -> int | None:
        """Return the block length of a layer, or None where it is not said."""
        return (self._layer(module) or {}).get("group_size") or self.group_size

    def _layer(self, module: str) -> Mapping[str, Any] | None:
        """Return what is said of a layer, or of the one that it is in: experts may go by a common module."""
        while module and module not in self.layers:
            module = module.rpartition(".")[0]
        return self.layers.get(module)


def read_metadata(directory: Path, config: Mapping[str, Any]) -> Metadata:
    """Return what hf_quant_config.json says, or config.json where there is no such file.

    Args:
        directory: The checkpoint.
        config: Its config.json.

    Raises:
        CheckpointError: a field is missing, of another type than expected, or names an unknown format.
    """
    if (directory / NESTED_FILE).is_file():
        return metadata_of(read_json(directory / NESTED_FILE), directory / NESTED_FILE, "quantization")
    file, where = directory / "config.json", "quantization_config"
    return metadata_of(_field(config, where, dict, file) or {}, file, where)


def metadata_of(data: Mapping[str, Any], file: Path, where: str) -> Metadata:
    """Return what one of the two descriptions says, in either shape.

    Args:
        data: The description.
        file: Where it was read.
        where: What it is called there, for messages.

    Raises:
        CheckpointError: as in `read_metadata`.
    """
    fields = data.get("quantization", data)
    if not isinstance(fields, dict) or "quant_algo" not in fields:
        raise CheckpointError(f"{file} names no {where}.quant_algo")
    return Metadata(
        file.parent,
        _field(fields, "quant_algo", str, file),
        _group_size(fields, file),
        _cache(fields, file),
        _field(fields, "exclude_modules", list, file) or _field(fields, "ignore", list, file) or [],
        _layers(fields, file),
    )


def _layers(fields: Mapping[str, Any], file: Path) -> dict[str, Any]:
    layers: dict[str, Any] = _field(fields, "quantized_layers", dict, file) or {}
    for module, layer in layers.items():
        if not isinstance(layer, dict) or not isinstance(layer.get("quant_algo"), str):
            raise CheckpointError(
                f"{file}: quantized_layers names no quant_algo for {module}, found {layer!r}"
            )
        _field(layer, "group_size", int, file)
    return layers


def _group_size(fields: Mapping[str, Any], file: Path) -> int | None:
    length: int | None = _field(fields, "group_size", int, file)
    match fields.get("config_groups"):
        case {"group_0": {"weights": {"group_size": int(in_group)}}}:
            return length or in_group
    return length


def _cache(fields: Mapping[str, Any], file: Path) -> str | None:
    name, scheme = fields.get("kv_cache_quant_algo"), fields.get("kv_cache_scheme")
    if name is None and scheme is None:
        return None
    if name is None:
        match scheme:
            case {"num_bits": int(bits), "type": "float"} if bits in _CACHE_NAMES:
                return _CACHE_NAMES[bits]
            case str(spelled) if spelled in ("NVFP4", NVFP4_AFFINE):  # as ModelOpt writes them
                return spelled
        raise CheckpointError(f"{file}: kv_cache_scheme must be a float of 4 or 8 bits, found {scheme!r}")
    if str(name).upper() not in CACHES:
        raise CheckpointError(f"{file}: unknown kv_cache_quant_algo {name!r}; known: {', '.join(CACHES)}")
    return str(name).upper()


def _field(data: Mapping[str, Any], name: str, kind: type, file: Path) -> Any:
    """Return a field, or None where it is missing or null."""
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise CheckpointError(f"{file}: {name} must be of type {kind.__name__}, found {value!r}")
    return value
