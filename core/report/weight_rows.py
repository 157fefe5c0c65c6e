"""The report's rows: one for each weight, one for each of a stack."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.core.model.stored_weight import StoredWeight

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|\[|$)")


def weight_rows(
    weights: Mapping[str, StoredWeight],
    sqnr: Mapping[str, float | None],
    notes: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return a row for each quantized weight as it is stored, JSON-ready.

    Args:
        weights: The weights, by the parameter's name.
        sqnr: Their signal-to-noise ratio in dB as they are stored, by name; a weight that is missing is one that
            another's tensor stands for.
        notes: What algorithms said of weights, in order: `weight`, `algorithm`, and what they like.
    """
    steps: dict[str, list[dict[str, Any]]] = {}
    for note in notes:
        steps.setdefault(note["weight"], []).append({k: v for k, v in note.items() if k != "weight"})
    return [
        _row(
            name,
            weight,
            sqnr[name],
            steps.get(name, []) + (steps.get(parameter, []) if name != parameter else []),
        )
        for parameter, weight in weights.items()
        for name in weight.names()
        if name in sqnr
    ]


def depth_of(name: str) -> int | None:
    """Return the number of the block that a weight belongs to: the first number in its name."""
    match = _NUMBER.search(name)
    return int(match[1]) if match else None


def _row(
    name: str, weight: StoredWeight, sqnr: float | None, steps: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    stages = weight.layer.quantizers()[weight.slot.inputs].stages()
    inputs = [str(stage.spec) for stage in stages if stage.enabled and stage.spec is not None]
    solved = _last(steps, "weight_sqnr_db")
    return {
        "weight": name,
        "depth": depth_of(name),
        "format": str(weight.spec),
        "inputs": " then ".join(inputs) or None,
        "algorithms": [step["algorithm"] for step in steps] or ["max"],
        # Rounded weights have replaced the original ones: then only the algorithm knows what was lost.
        "weight_sqnr_db": sqnr if solved is None else solved,
        "output_sqnr_db": _last(steps, "output_sqnr_db"),
        "fallback": _last(steps, "fallback"),
        "steps": list(steps),
    }


def _last(steps: Sequence[Mapping[str, Any]], key: str) -> Any:
    return next((step[key] for step in reversed(steps) if step.get(key) is not None), None)
