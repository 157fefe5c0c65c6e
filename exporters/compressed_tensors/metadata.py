"""The description of a checkpoint: config.json's `quantization_config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import LayerFormat
from octavo.exporters.compressed_tensors.dialect import CompressedTensorsDialect
from octavo.exporters.compressed_tensors.formats import Format, arguments, format_for, spec_from_arguments

METHOD = "compressed-tensors"


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of its one format."""

    format: Format
    layer: LayerFormat
    ignore: list[str]


def quantization_config(
    format_name: str, weight: QuantSpec, inputs: QuantSpec | None, ignore: Sequence[str]
) -> dict[str, Any]:
    """Return the description of a checkpoint whose linear layers, but for `ignore`, have one format."""
    return {
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": arguments(weight),
                "input_activations": None if inputs is None else arguments(inputs),
                "output_activations": None,
                "format": format_name,
            }
        },
        "format": format_name,
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "written_by": f"octavo {version('octavo')}",
    }


def is_compressed_tensors(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a checkpoint of this dialect."""
    found = config.get("quantization_config")
    return isinstance(found, dict) and found.get("quant_method") == METHOD


def read_metadata(config: Mapping[str, Any], file: Path) -> Metadata:
    """Return what a config.json says.

    Raises:
        CheckpointError: it has no group or several, quantizes the cache, or has a format that is not read.
    """
    found = config["quantization_config"]
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise CheckpointError(f"{file}: one entry of config_groups is read, found {groups!r}")
    if found.get("kv_cache_scheme") is not None:
        raise CheckpointError(
            f"{file}: a quantized cache is not read yet, found {found['kv_cache_scheme']!r}"
        )
    (group,) = groups.values()
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise CheckpointError(f"{file}: config_groups must say how weights are quantized, found {group!r}")
    inputs = group.get("input_activations")
    weight = spec_from_arguments(group["weights"], f"{file}: weights")
    weight = CompressedTensorsDialect().weight_spec(weight, None)
    layer = LayerFormat(weight, spec_from_arguments(inputs, f"{file}: input_activations") if inputs else None)
    known, name = format_for(layer), group.get("format") or found.get("format")
    if known is None or known.name != name:
        raise CheckpointError(
            f"{file}: format {name!r} of weights {weight}, inputs {layer.inputs} is not read"
        )
    return Metadata(known, layer, list(found.get("ignore") or []))
