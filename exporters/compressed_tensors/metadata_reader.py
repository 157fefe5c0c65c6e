"""Reading config.json's `quantization_config`: ours, and llm-compressor's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import LayerFormat
from octavo.exporters.compressed_tensors.dialect import CompressedTensorsDialect
from octavo.exporters.compressed_tensors.formats import formats_for
from octavo.exporters.compressed_tensors.metadata import FP8_CACHE, LINEAR, METHOD, MIXED, Group
from octavo.exporters.compressed_tensors.strategies import as_input, spec_from_arguments

_PATTERN = "re:"
_STATUS = "compressed"
_UNREAD = ("sparsity_config", "transform_config")  # what changes weights or inputs beside their quantization


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of its formats.

    Attributes:
        file: Where.
        groups: Its groups of layers.
        cache: Format of keys and values, or None.
        ignore: Modules that are not quantized.
    """

    file: Path
    groups: tuple[Group, ...]
    cache: QuantSpec | None
    ignore: tuple[str, ...]

    def group_of(self, module: str) -> Group:
        """Return the group of a quantized module: by its name, by a pattern, or by its class, a linear layer's.

        Raises:
            CheckpointError: no group has it.
        """
        if module in self._by_name:
            return self._by_name[module]
        for fits in (_is_pattern_of, _is_class_of_linear_layers):
            for group in self.groups:
                if any(fits(target, module) for target in group.targets):
                    return group
        targets = [list(group.targets)[:3] for group in self.groups]
        raise CheckpointError(
            f"{self.file}: {module} has scales, and no group of config_groups targets it; found targets {targets}"
        )

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {target: group for group in reversed(self.groups) for target in group.targets}


def is_compressed_tensors(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a checkpoint of this dialect."""
    found = config.get("quantization_config")
    return isinstance(found, dict) and found.get("quant_method") == METHOD


def read_metadata(config: Mapping[str, Any], file: Path) -> Metadata:
    """Return what a config.json says.

    Raises:
        CheckpointError: it has no group, or something that is not read.
    """
    found = config["quantization_config"]
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{file}: config_groups must name groups of layers, found {groups!r}")
    _check_whole(found, file)
    cache = found.get("kv_cache_scheme")
    return Metadata(
        file,
        tuple(_group(group, found.get("format"), file) for group in groups.values()),
        None if cache is None else _cache(cache, file),
        tuple(found.get("ignore") or ()),
    )


def _check_whole(found: Mapping[str, Any], file: Path) -> None:
    """Refuse a checkpoint whose weights are something else than codes and scales."""
    status = found.get("quantization_status", _STATUS)
    if status != _STATUS:
        raise CheckpointError(
            f"{file}: checkpoints with quantization_status {_STATUS!r} are read, found {status!r}"
        )
    for key in _UNREAD:
        value = found.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise CheckpointError(f"{file}: a checkpoint with {key} is not read, found {value!r}")


def _group(group: object, common: str | None, file: Path) -> Group:
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise CheckpointError(f"{file}: config_groups must say how weights are quantized, found {group!r}")
    if group.get("output_activations"):
        raise CheckpointError(
            f"{file}: quantized outputs are not read, found {group['output_activations']!r}"
        )
    inputs = group.get("input_activations")
    weight = spec_from_arguments(group["weights"], f"{file}: weights")
    layer = LayerFormat(
        CompressedTensorsDialect().weight_spec(weight, None),
        as_input(spec_from_arguments(inputs, f"{file}: input_activations")) if inputs else None,
        zero_points=not group["weights"].get("symmetric", True),
    )
    name = group.get("format") or common
    known = next((known for known in formats_for(layer) if name in (known.name, MIXED, None)), None)
    if known is None:
        raise CheckpointError(
            f"{file}: format {name!r} of weights {layer.weight}, inputs {layer.inputs} is not read"
        )
    return Group(known, layer, _targets(group, file))


def _targets(group: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(f"{file}: targets of a group must be a list of names, found {targets!r}")
    for target in targets:
        try:
            re.compile(target.removeprefix(_PATTERN))
        except re.error as error:
            raise CheckpointError(f"{file}: target {target!r} is no pattern: {error}") from error
    return tuple(targets)


def _is_pattern_of(target: str, module: str) -> bool:
    return target.startswith(_PATTERN) and re.match(target.removeprefix(_PATTERN), module) is not None


def _is_class_of_linear_layers(target: str, module: str) -> bool:
    return target == LINEAR


def _cache(found: object, file: Path) -> QuantSpec:
    spec = spec_from_arguments(found, f"{file}: kv_cache_scheme") if isinstance(found, dict) else None
    if spec != FP8_CACHE:
        raise CheckpointError(
            f"{file}: a cache of e4m3 with one scale for each layer is read, found {found!r}"
        )
    return spec
