"""The description of a checkpoint: config.json's `quantization_config`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.model.exporter import LayerFormat
from octavo.exporters.compressed_tensors.formats import Format
from octavo.exporters.compressed_tensors.strategies import arguments

METHOD = "compressed-tensors"
MIXED = "mixed-precision"
LINEAR = "Linear"  # the class whose name targets all linear layers, experts' too
FP8_CACHE = QuantSpec("e4m3", PerTensor())


@dataclass(frozen=True)
class Group:
    """Layers of one format.

    Attributes:
        format: The format.
        layer: The same in neutral terms.
        targets: Names of modules, `re:` patterns of such, or names of classes (`Linear`).
    """

    format: Format
    layer: LayerFormat
    targets: tuple[str, ...]


def described_groups(layers: Mapping[str, tuple[LayerFormat, Format]]) -> list[Group]:
    """Return the groups of a checkpoint's layers, by name: every linear layer in one, or each group's layers by name.

    Layers are in one group where metadata says the same of them.
    """
    alike: dict[str, list[str]] = {}
    for name, (layer, known) in layers.items():
        alike.setdefault(json.dumps(_described(known, layer)), []).append(name)
    return [
        Group(layers[names[0]][1], layers[names[0]][0], (LINEAR,) if len(alike) == 1 else tuple(names))
        for names in alike.values()
    ]


def quantization_config(
    groups: Sequence[Group], cache: QuantSpec | None, ignore: Iterable[str]
) -> dict[str, Any]:
    """Return the description of a checkpoint with these groups, in which the layers `ignore` are not quantized."""
    names = {group.format.name for group in groups}
    return {
        "config_groups": {
            f"group_{number}": {
                "targets": list(group.targets),
                **_described(group.format, group.layer),
                "output_activations": None,
            }
            for number, group in enumerate(groups)
        },
        "format": names.pop() if len(names) == 1 else MIXED,
        "ignore": sorted(ignore),
        "kv_cache_scheme": None if cache is None else arguments(cache),
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "written_by": f"octavo {version('octavo')}",
    }


def _described(known: Format, layer: LayerFormat) -> dict[str, Any]:
    return {
        "weights": arguments(layer.weight, zero_points=layer.zero_points),
        "input_activations": None if layer.inputs is None else arguments(layer.inputs, is_input=True),
        "format": known.name,
    }
