"""The dialect's formats (formats.yaml): which pairs of weights and inputs it stores, and which engine loads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import LayerFormat, Verdict
from octavo.exporters.compressed_tensors.strategies import has_block_scales, strategy

_ANY_SHAPE = Verdict("loads", "no rule about shapes is known")


@dataclass(frozen=True)
class Format:
    """One format of the dialect.

    Attributes:
        name: Its name in the checkpoint.
        weights: Kinds of weights that it stores, as `int4 group`.
        inputs: Kinds of inputs that go with them; `none` when these are not quantized.
        targets: Which engine loads it, and how that is known.
        experts: The same for stacked experts, where that differs.
        multiples: What an engine wants the dims of a weight on one rank to be multiples of: `out`, `in` and
            `joined_out` (of layers that it joins), with the verdict of others, `status` and `evidence`.
    """

    name: str
    weights: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: Mapping[str, Verdict]
    experts: Mapping[str, Verdict]
    multiples: Mapping[str, Mapping[str, Any]]

    def shape_verdict(self, target: str, shape: Sequence[int], is_fused: bool) -> Verdict:
        """Return whether `target` loads a weight [out, in], or experts [experts, out, in]; joined or not."""
        if len(shape) == 3:
            return self.experts.get(target, _ANY_SHAPE)
        rule = self.multiples.get(target, {})
        for key, size in (("out", shape[0]), ("in", shape[1]), ("joined_out", shape[0] if is_fused else 0)):
            if size % rule.get(key, 1):
                dim = "in_features" if key == "in" else "out_features"
                what = f"{rule['evidence']}: {dim} {size} is no multiple of {rule[key]}"
                return Verdict(rule["status"], what)
        return _ANY_SHAPE


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Return all formats."""
    return tuple(
        Format(
            row["format"],
            tuple(row["weights"]),
            tuple(row["inputs"]),
            {target: Verdict(**verdict) for target, verdict in row["targets"].items()},
            {target: Verdict(**verdict) for target, verdict in row.get("experts", {}).items()},
            row.get("multiples", {}),
        )
        for row in _table()["formats"]
    )


def format_for(layer: LayerFormat) -> Format | None:
    """Return the format that stores layers of this format, or None."""
    return next(iter(formats_for(layer)), None)


def formats_for(layer: LayerFormat) -> list[Format]:
    """Return the formats in which checkpoints may hold layers of this format; Octavo writes the first."""
    if layer.then is not None:
        return []
    weight = ("asymmetric " if layer.zero_points else "") + kind(layer.weight)
    inputs = "none" if layer.inputs is None else kind(layer.inputs)
    return [known for known in formats() if weight in known.weights and inputs in known.inputs]


def kind(spec: QuantSpec) -> str:
    """Return what `Format` calls a tensor's format: `int8 token dynamic`."""
    is_dynamic = spec.dynamic and not has_block_scales(spec)  # which are dynamic by definition
    return " ".join([spec.element, strategy(spec), *(["dynamic"] if is_dynamic else [])])


def cache_verdict(target: str) -> Verdict:
    """Return whether the engine `target` reads the scales of an FP8 cache."""
    return _verdict("cache", target)


def mixture_verdict(target: str) -> Verdict:
    """Return whether the engine `target` loads a checkpoint with several formats."""
    return _verdict("mixtures", target)


def _verdict(what: str, target: str) -> Verdict:
    row = _table()[what].get(target)
    return Verdict("unknown", "never tried there") if row is None else Verdict(**row)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("formats.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
