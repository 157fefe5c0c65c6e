"""The dialect's formats (formats.yaml), and how its metadata describes a tensor's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.formats import Granularity, PerBlock, PerChannel, PerTensor, PerToken, QuantSpec
from octavo.core.model.exporter import LayerFormat, Verdict

_MX_LENGTH = 32
_ELEMENTS = {("int", 8): "int8", ("int", 4): "int4", ("float", 8): "e4m3", ("float", 4): "e2m1"}
_E8M0 = "torch.uint8"  # how metadata spells the dtype of E8M0 scales


@dataclass(frozen=True)
class Format:
    """One format of the dialect.

    Attributes:
        name: Its name in the checkpoint.
        weights: Kinds of weights that it stores, as `int4 group`.
        inputs: Kinds of inputs that go with them; `none` when these are not quantized.
        targets: Which engine loads it, and how that is known.
        multiples: What an engine wants the dims of a weight to be multiples of: `length` and `evidence`.
    """

    name: str
    weights: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: Mapping[str, Verdict]
    multiples: Mapping[str, Mapping[str, Any]]


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Return all formats."""
    import yaml

    rows = yaml.safe_load(Path(__file__).with_name("formats.yaml").read_text(encoding="utf-8"))
    return tuple(
        Format(
            row["format"],
            tuple(row["weights"]),
            tuple(row["inputs"]),
            {target: Verdict(**verdict) for target, verdict in row["targets"].items()},
            row.get("multiples", {}),
        )
        for row in rows
    )


def format_for(layer: LayerFormat) -> Format | None:
    """Return the format that stores layers of this format, or None."""
    if layer.then is not None:
        return None
    weight, inputs = kind(layer.weight), "none" if layer.inputs is None else kind(layer.inputs)
    return next((f for f in formats() if weight in f.weights and inputs in f.inputs), None)


def kind(spec: QuantSpec) -> str:
    """Return what `Format` calls a tensor's format: `int8 token dynamic`."""
    return " ".join([spec.element, _strategy(spec), *(["dynamic"] if spec.dynamic else [])])


def arguments(spec: QuantSpec) -> dict[str, Any]:
    """Return the `QuantizationArgs` that describe a tensor's format."""
    strategy = _strategy(spec)
    described: dict[str, Any] = {
        "num_bits": spec.element_type.bits,
        "type": "float" if spec.element_type.is_float else "int",
        "symmetric": True,
        "strategy": "group" if strategy == "mx" else strategy,
        "dynamic": spec.dynamic and strategy != "mx",
    }
    if isinstance(spec.granularity, PerBlock):
        described["group_size"] = dict(spec.granularity.sizes)[-1]
    return {**described, "scale_dtype": _E8M0} if strategy == "mx" else described


def spec_from_arguments(found: Mapping[str, Any], where: str) -> QuantSpec:
    """Undo `arguments`.

    Raises:
        CheckpointError: they describe a format that is not read: asymmetric, or of another type or strategy.
    """
    length = found.get("group_size")
    by_strategy: dict[str, Granularity | None] = {
        "tensor": PerTensor(),
        "channel": PerChannel(0),
        "token": PerToken(),
        "group": PerBlock(((-1, length),)) if isinstance(length, int) and length > 0 else None,
    }
    granularity = by_strategy.get(str(found.get("strategy") or ("group" if length else "tensor")))
    element = _ELEMENTS.get((str(found.get("type", "int")), found.get("num_bits", 8)))
    if granularity is None or element is None or not found.get("symmetric", True) or found.get("actorder"):
        raise CheckpointError(
            f"{where} describes a format that is not read: {dict(found)}. Read are symmetric int and float codes "
            "of 4 and 8 bits with scales per tensor, channel, token or group, without actorder"
        )
    if found.get("scale_dtype") == _E8M0:
        return QuantSpec(element, granularity, scale="e8m0", dynamic=True)
    return QuantSpec(element, granularity, dynamic=bool(found.get("dynamic")))


def _strategy(spec: QuantSpec) -> str:
    """Return the dialect's name for how scales lie in a tensor; what it has none for, in Octavo's words."""
    granularity = spec.granularity
    if isinstance(granularity, PerBlock) and [axis for axis, _ in granularity.sizes] == [-1]:
        if spec.scale == "float32":
            return "group"
        return "mx" if spec.scale == "e8m0" and granularity.sizes[0][1] == _MX_LENGTH else str(spec)
    names: dict[Granularity, str] = {PerTensor(): "tensor", PerChannel(0): "channel", PerToken(): "token"}
    return names.get(granularity, str(spec))
