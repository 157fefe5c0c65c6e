"""Schemes: the dialect's names for pairs of weight and input formats (schemes.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError, nearest
from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.model.exporter import LayerFormat

_ANY_LENGTH = 1  # stands for a block length that schemes.yaml leaves open


@dataclass(frozen=True)
class Scheme:
    """One format of the dialect.

    Attributes:
        quant_algo: Its name in the checkpoint.
        weight: Format of the weight; blocks of length 1 stand for any length.
        inputs: Format of the input, or None.
        then: Format in which the rounded weight is rounded once more, or None.
        smoothing: As in `LayerFormat`; empty stands for any that no other scheme of these formats has.
        folds_norms: Whether factors on inputs are folded into norms.
        folds_linears: Whether they are folded into layers in front, in the classes that the peer knows.
        stored: Fields of the weight's format that the dialect changes when it stores it.
        stored_stack: The same for experts' weights in one tensor; None where the dialect has no form for these.
        group_size: Whether metadata names the block length.
        config_groups: Whether config.json has groups.
        extra: Further metadata fields.
    """

    quant_algo: str
    weight: QuantSpec
    inputs: QuantSpec | None
    then: QuantSpec | None = None
    smoothing: str = ""
    folds_norms: bool = False
    folds_linears: bool = False
    stored: Mapping[str, Any] = field(default_factory=dict)
    stored_stack: Mapping[str, Any] | None = None
    group_size: bool = False
    config_groups: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, layer: LayerFormat) -> bool:
        """Whether a layer of this format is stored by this scheme; no scheme has zero points."""
        if layer.zero_points:
            return False
        weight = _comparable(layer.weight)
        if self._has_open_blocks and _one_dim_block(weight):
            weight = replace(weight, granularity=self.weight.granularity)
        formats = (_comparable(self.weight), self.inputs, self.then)
        return (weight, layer.inputs, layer.then) == formats and self.smoothing in ("", layer.smoothing)

    def stored_weight(self, weight: QuantSpec) -> QuantSpec:
        """Return the format that the dialect's bytes of a weight calibrated as `weight` have."""
        return replace(weight, **(self.stored_stack or {} if weight.is_stacked else self.stored))

    def weight_with_block(self, length: int, is_stack: bool = False) -> QuantSpec:
        """Return the stored format of a weight, or of a stack, with an open block length filled in."""
        weight = self.weight
        if self._has_open_blocks:
            weight = replace(weight, granularity=PerBlock(((-1, length),)))
        return self.stored_weight(weight.stacked() if is_stack else weight)

    @property
    def _has_open_blocks(self) -> bool:
        return self.weight.granularity == PerBlock(((-1, _ANY_LENGTH),))


@lru_cache(maxsize=1)
def schemes() -> tuple[Scheme, ...]:
    """Return all schemes."""
    import yaml

    rows = yaml.safe_load(Path(__file__).with_name("schemes.yaml").read_text(encoding="utf-8"))
    return tuple(
        Scheme(
            **{
                **row,
                "weight": _spec(row["weight"]),
                "inputs": _spec(row["inputs"]) if row["inputs"] else None,
                "then": _spec(row["then"]) if "then" in row else None,
            }
        )
        for row in rows
    )


@cache
def scheme_for(layer: LayerFormat) -> Scheme | None:
    """Return the scheme that stores layers of this format, or None."""
    fitting = [scheme for scheme in schemes() if scheme.matches(layer)]
    return max(fitting, key=lambda scheme: scheme.smoothing == layer.smoothing, default=None)


def scheme_named(quant_algo: str, static_inputs: bool, where: str) -> Scheme:
    """Return the scheme called `quant_algo`.

    Args:
        quant_algo: Its name; upper and lower case are the same.
        static_inputs: Whether the layer has an `input_scale`, which tells two schemes of one name apart.
        where: What names it, for the message.

    Raises:
        CheckpointError: there is none.
    """
    named = [scheme for scheme in schemes() if scheme.quant_algo.upper() == quant_algo.upper()]
    if not named:
        known = sorted({scheme.quant_algo for scheme in schemes()})
        raise CheckpointError(
            f"{where}: unknown quant_algo {quant_algo!r}; known: {', '.join(known)}.{nearest(quant_algo, known)}"
        )
    fitting = [s for s in named if s.inputs is None or s.inputs.dynamic != static_inputs]
    return (fitting or named)[0]


def block_length(weight: QuantSpec) -> int | None:
    """Return the length of one-dim blocks along the last dim, or None."""
    return dict(weight.granularity.sizes)[-1] if _one_dim_block(weight) else None  # type: ignore[union-attr]


def _one_dim_block(weight: QuantSpec) -> bool:
    return isinstance(weight.granularity, PerBlock) and [axis for axis, _ in weight.granularity.sizes] == [-1]


def _comparable(weight: QuantSpec) -> QuantSpec:
    """Leave out what does not show in stored bytes' layout: how scales were found and quotients rounded."""
    dynamic = weight.scale == "e8m0"  # E8M0 scales are dynamic by definition
    global_max = None if weight.global_max is None else 2688.0
    plain = replace(weight, dynamic=dynamic, arithmetic="multiply", ties="even", global_max=global_max)
    return replace(plain, scale_rounding="ceil")


def _spec(data: dict[str, Any]) -> QuantSpec:
    granularity = data["granularity"]
    if granularity["kind"] == "block":
        sizes = {axis: length or _ANY_LENGTH for axis, length in granularity["sizes"].items()}
        data = {**data, "granularity": {"kind": "block", "sizes": sizes}}
    return QuantSpec.from_json(data)
