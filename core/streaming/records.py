"""What stays known of a part of a model after its weights are written and dropped; JSON-ready, for the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.quantizers import Bias


@dataclass(frozen=True)
class PartRecord:
    """A written part.

    Attributes:
        source: Names of the source's tensors that it was made of.
        weights: Names of its quantized parameters.
        layers: {layer: its format}, as `LayerFormat` in JSON.
        folded: Layers whose factor on the input is folded.
        caches: {quantizer of keys or values: what it does}, as `InputState` in JSON.
        cache: Format of keys and values, or None.
        rows: Its rows of the report.
        changed: Names of parameters that calibration gave other values.
        warnings: What a user should know.
        differences: What differs from the peer's numbers, for a target.
        log: What calibration noted (`RunLog`).
    """

    source: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    layers: dict[str, Any] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)
    caches: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    log: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartRecord:
        """Read what `to_json` returned."""
        return cls(**{found.name: data[found.name] for found in fields(cls)})


def joined(records: Iterable[PartRecord]) -> PartRecord:
    """Return the record of all parts together."""
    whole = PartRecord(log={"tokens_per_expert": {}, "warnings": [], "seconds": {}})
    cache = None
    for record in records:
        for name in ("source", "weights", "folded", "rows", "changed"):
            getattr(whole, name).extend(getattr(record, name))
        for name in ("warnings", "differences"):
            getattr(whole, name).extend(
                text for text in getattr(record, name) if text not in getattr(whole, name)
            )
        whole.layers.update(record.layers)
        whole.caches.update(record.caches)
        cache = cache or record.cache
        _join_logs(whole.log, record.log)
    return PartRecord(
        **{**{found.name: getattr(whole, found.name) for found in fields(PartRecord)}, "cache": cache}
    )


def format_to_json(layer: LayerFormat) -> dict[str, Any]:
    """Return a format JSON-ready."""
    specs = {"weight": layer.weight, "inputs": layer.inputs, "then": layer.then}
    found: dict[str, Any] = {name: spec and spec.to_json() for name, spec in specs.items()}
    return {**found, "smoothing": layer.smoothing, "zero_points": layer.zero_points}


def format_from_json(data: Mapping[str, Any]) -> LayerFormat:
    """Read what `format_to_json` returned."""
    specs = {name: data[name] and QuantSpec.from_json(data[name]) for name in ("weight", "inputs", "then")}
    return LayerFormat(**specs, smoothing=data["smoothing"], zero_points=data["zero_points"])


def state_to_json(state: InputState) -> dict[str, Any]:
    """Return what a cache's quantizer does JSON-ready; fp32 numbers come back as they were."""
    return {
        "spec": state.spec and state.spec.to_json(),
        "state": {name: _numbers(tensor) for name, tensor in state.state.items()},
        "pre_quant_scale": None if state.pre_quant_scale is None else _numbers(state.pre_quant_scale),
        "bias": state.bias and state.bias.to_json(),
        "bias_value": None if state.bias_value is None else _numbers(state.bias_value),
    }


def state_from_json(data: Mapping[str, Any]) -> InputState:
    """Read what `state_to_json` returned."""
    bias = data["bias"]
    return InputState(
        data["spec"] and QuantSpec.from_json(data["spec"]),
        {name: _tensor(value) for name, value in data["state"].items()},
        None if data["pre_quant_scale"] is None else _tensor(data["pre_quant_scale"]),
        bias=bias and Bias(tuple(bias["axes"]), bias["method"], bias["dynamic"]),
        bias_value=None if data["bias_value"] is None else _tensor(data["bias_value"]),
    )


def _numbers(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "values": tensor.detach().float().flatten().tolist()}


def _tensor(data: Mapping[str, Any]) -> Tensor:
    return torch.tensor(data["values"], dtype=torch.float32).reshape(data["shape"])


def _join_logs(whole: dict[str, Any], log: Mapping[str, Any]) -> None:
    whole["tokens_per_expert"].update(log.get("tokens_per_expert", {}))
    whole["warnings"] += [text for text in log.get("warnings", []) if text not in whole["warnings"]]
    for name, seconds in log.get("seconds", {}).items():
        whole["seconds"][name] = whole["seconds"].get(name, 0.0) + seconds
