"""The formats of the dialect (formats.yaml), and which of them stores a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.model.exporter import LayerFormat, Verdict

_GLOBAL_MAX = 2688.0  # of FP4 as it is calibrated
_ANY_LENGTH = 1  # stands for a block length that formats.yaml leaves open


@dataclass(frozen=True)
class Format:
    """One format of the dialect; the fields are those of formats.yaml."""

    quant_algo: str
    weight: QuantSpec
    inputs: QuantSpec | None
    then: QuantSpec | None = None
    smoothing: str = ""
    stored: Mapping[str, Any] = field(default_factory=dict)
    joins_gate: bool = False
    scale: str = "weights_scaling_factor"
    group_size: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    experts: bool = False
    plain_for_reader: bool = False
    needs_factor: bool = False
    reader: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, layer: LayerFormat) -> bool:
        """Whether a layer of this format, calibrated or finalized, is stored so."""
        weight = _comparable(layer.weight)
        if self.weight.granularity == PerBlock(((-1, _ANY_LENGTH),)) and block_length(weight):
            weight = replace(weight, granularity=self.weight.granularity)
        formats = (_comparable(self.weight), self.inputs, self.then)
        return (weight, layer.inputs, layer.then) == formats and self.smoothing in ("", layer.smoothing)

    def stored_weight(self, weight: QuantSpec) -> QuantSpec:
        """Return the format that the dialect's bytes of a weight calibrated as `weight` have."""
        return replace(weight, **self.stored)

    def stores_experts(self, for_reader: bool) -> bool:
        """Whether experts are stored in this format, and for the engine builder's reader."""
        return self.experts or (for_reader and self.plain_for_reader)

    def metadata(self, weight: QuantSpec) -> dict[str, Any]:
        """Return what config.json says of a layer of this format, whose weight is stored as `weight`."""
        length = {"group_size": block_length(weight)} if self.group_size else {}
        return {"quant_algo": self.quant_algo, **length, **self.extra}

    def verdict(self, weight: QuantSpec) -> Verdict:
        """Return what the last engine builders make of a weight of this format."""
        known = self.reader.get("block")
        if known is not None and block_length(weight) != known:
            return Verdict("refused", f"the 0.17 reader takes {self.quant_algo} with blocks of {known} only")
        return Verdict(self.reader["status"], self.reader["evidence"])


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Return all formats."""
    import yaml

    rows = yaml.safe_load(Path(__file__).with_name("formats.yaml").read_text(encoding="utf-8"))
    specs = ("weight", "inputs", "then")
    fields: list[dict[str, Any]] = [
        {key: _spec(value) if key in specs and value else value for key, value in row.items()} for row in rows
    ]
    return tuple(Format(**row) for row in fields)


@cache
def format_for(layer: LayerFormat | None) -> Format | None:
    """Return the format that stores layers of `layer`'s format, or None."""
    fitting = (
        [] if layer is None or layer.smoothing == "low_rank" else [f for f in formats() if f.matches(layer)]
    )
    return max(fitting, key=lambda found: bool(found.smoothing), default=None)


def block_length(weight: QuantSpec) -> int | None:
    """Return the length of one-dim blocks along the last dim, or None."""
    granularity = weight.granularity
    if isinstance(granularity, PerBlock) and [axis for axis, _ in granularity.sizes] == [-1]:
        return dict(granularity.sizes)[-1]
    return None


def _comparable(weight: QuantSpec) -> QuantSpec:
    """Leave out how scales were found and quotients are rounded."""
    global_max = None if weight.global_max is None else _GLOBAL_MAX
    return replace(weight, dynamic=False, arithmetic="multiply", ties="even", global_max=global_max)


def _spec(data: dict[str, Any]) -> QuantSpec:
    granularity = data["granularity"]
    if granularity["kind"] == "block":
        sizes = {axis: length or _ANY_LENGTH for axis, length in granularity["sizes"].items()}
        data = {**data, "granularity": {"kind": "block", "sizes": sizes}}
    return QuantSpec.from_json(data)
