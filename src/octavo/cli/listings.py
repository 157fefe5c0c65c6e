"""`octavo presets`, `octavo plugins` and `octavo kernels`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import typer

from octavo.cli import options, output
from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.support import FAMILIES, support
from octavo.core.config import kv_preset_names, preset, preset_names
from octavo.core.config.entries import parse_rules
from octavo.core.config.rules import decide
from octavo.core.errors import OctavoError
from octavo.core.formats import QuantSpec
from octavo.core.ops.implementations import implementations
from octavo.core.plugins import plugins as loaded_plugins


def presets(as_json: options.AsJson = False) -> None:
    """List presets, their algorithm, and what of them is missing in this version; algorithms and what they know."""
    rows = []
    for name in preset_names():
        algorithm = preset(name)["algorithm"]
        method = algorithm["method"] if isinstance(algorithm, dict) else algorithm
        kind = "KV cache" if name in kv_preset_names() else "model"
        rows.append({"name": name, "kind": kind, "algorithm": method, "missing": _missing(name)})
    if as_json:
        output.print_json(rows)
    else:
        columns = ("name", "kind", "algorithm", "missing")
        output.print_table("presets", columns, [[row[c] or "" for c in columns] for row in rows])
        output.print_table("algorithms", ("algorithm", *FAMILIES), support())


def plugins(as_json: options.AsJson = False) -> None:
    """List plugins; a broken one is shown with its error."""
    rows = [
        {
            "name": status.name,
            "origin": status.origin,
            "summary": status.info.summary if status.info is not None else None,
            "requires": list(status.info.requires) if status.info is not None else [],
            "error": status.error,
        }
        for status in loaded_plugins().statuses
    ]
    if as_json:
        output.print_json(rows)
    else:
        columns = ("name", "origin", "summary", "error")
        output.print_table("plugins", columns, [[row[c] or "" for c in columns] for row in rows])


def kernels(
    name: Annotated[str | None, typer.Option("--preset", help="Only formats of this preset.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List what computes each operator on each device, why others do not, and formats left to the reference."""
    chains = {spec.key: str(spec) for name in ([name] if name else preset_names()) for spec in _specs(name)}
    rows = [
        {
            "device": one.device_type,
            "operator": one.operator,
            "runs": one.runs,
            "others": dict(one.others),
            "left_to_reference": {chains[chain]: why for chain, why in one.left.items()},
        }
        for one in implementations(list(chains))
    ]
    if as_json:
        output.print_json(rows)
    else:
        columns = ("device", "operator", "runs", "others", "left_to_reference")
        output.print_table("kernels", columns, [[row[c] or "" for c in columns] for row in rows])


def _specs(name: str) -> Iterator[QuantSpec]:
    """Yield the formats of a preset."""
    for rule in parse_rules(preset(name)["quant_cfg"]):
        for attributes in decide("*", [rule.parent_class or ""], [replace(rule, pattern="*")]).stages:
            yield attributes.to_spec()


def _missing(name: str) -> str | None:
    """Return why this version cannot run a preset, or None."""
    try:
        algorithms_of(preset(name)["algorithm"])
        list(_specs(name))
    except OctavoError as error:
        return str(error)
    return None
