"""The report of one run: what was quantized how, how well, at what cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from octavo.core.calibration.experts import tokens_per_expert
from octavo.core.errors import ExportError
from octavo.core.model.export_report import ExportReport
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.modes.record import last_record

VERSION = 1
_NUMBER = re.compile(r"\.(\d+)(?=\.|\[|$)")


def run_report(
    model: nn.Module,
    weights: Mapping[str, StoredWeight],
    sqnr: Mapping[str, float | None],
    exported: ExportReport,
    left_out: list[str],
) -> dict[str, Any]:
    """Return the report of a model that was quantized and exported, JSON-ready.

    Args:
        model: The model.
        weights: The quantized weights, by the parameter's name.
        sqnr: Their signal-to-noise ratio in dB as they are stored, by name.
        exported: What the exporter says.
        left_out: Modules with weights that are not quantized.

    Raises:
        ExportError: the model is not quantized.
    """
    record = last_record(model, "quantize")
    if record is None:
        raise ExportError("the model is not quantized; call octavo.quantize first")
    run: Mapping[str, Any] = record.state.get("report") or {}
    notes: dict[str, list[dict[str, Any]]] = {}
    for row in run.get("weights", []):
        notes.setdefault(row["weight"], []).append({k: v for k, v in row.items() if k != "weight"})
    rows = [
        row
        for name, weight in weights.items()
        for row in _rows(name, weight, sqnr.get(name), notes, str(record.config.get("algorithm")))
    ]
    return {
        "version": VERSION,
        "model": type(model).__name__,
        "config": record.config,
        "run": {key: value for key, value in run.items() if key != "weights"},
        "weights": rows,
        "tokens_per_expert": {name: counts.tolist() for name, counts in tokens_per_expert(model).items()},
        "left_out": left_out,
        "warnings": [*exported.warnings, *run.get("warnings", [])],
        "differences": list(exported.differences),
        "totals": {
            "num_weights": len(rows),
            "num_tensors": exported.num_tensors,
            "bytes": exported.num_bytes,
            "exporter": exported.exporter,
        },
    }


def depth_of(name: str) -> int | None:
    """Return the number of the block that a weight belongs to: the first number in its name."""
    match = _NUMBER.search(name)
    return int(match[1]) if match else None


def _rows(
    name: str,
    weight: StoredWeight,
    sqnr: float | None,
    notes: Mapping[str, list[dict[str, Any]]],
    algorithm: str,
) -> list[dict[str, Any]]:
    """Return a row for a weight, or one for each of a stack where the algorithms treated them one by one."""
    stacked = [key for key in notes if key.startswith(f"{name}[")]
    return [_row(key, weight, sqnr, notes.get(key, []), algorithm) for key in stacked or [name]]


def _row(
    name: str, weight: StoredWeight, sqnr: float | None, steps: list[dict[str, Any]], algorithm: str
) -> dict[str, Any]:
    stages = weight.layer.quantizers()[weight.slot.inputs].stages()
    inputs = [str(stage.spec) for stage in stages if stage.enabled and stage.spec is not None]
    solved = [step["weight_sqnr_db"] for step in steps if step.get("weight_sqnr_db") is not None]
    return {
        "weight": name,
        "depth": depth_of(name),
        "format": str(weight.spec),
        "inputs": inputs[0] if inputs else None,
        # Rounded weights replaced the original ones: then only the algorithm knows what was lost.
        "weight_sqnr_db": solved[-1] if solved else sqnr,
        "output_sqnr_db": next(
            (step["output_sqnr_db"] for step in reversed(steps) if "output_sqnr_db" in step), None
        ),
        "algorithms": [step["algorithm"] for step in steps] or [algorithm],
        "steps": steps,
        "fallback": next((step["fallback"] for step in reversed(steps) if step.get("fallback")), None),
    }
