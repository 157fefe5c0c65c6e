"""Whether the engine that will serve a checkpoint loads what a plan would make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.errors import PlanError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.description import ModelDescription
from octavo.core.model.fused import fused_groups, fused_names
from octavo.core.model.targets import ServedLayer, Serving, best_serving, served_parts, unstored
from octavo.core.plan.settings import LayerSetting
from octavo.core.plan.tensor_parallel import rank_rows
from octavo.core.plugins import plugins


def target_problems(
    layers: Sequence[LayerSetting], description: ModelDescription | None, target: str, tp: int
) -> tuple[str | None, list[str], list[str]]:
    """Return (exporter, errors, warnings) about serving these layers with `target`.

    Args:
        layers: Every layer that can be quantized.
        description: The model's family map, or None.
        target: The engine.
        tp: Its tensor-parallel size.

    Raises:
        ConfigError: the target is unknown.
    """
    served = best_serving(_served_layers(layers, description, tp), target)
    unlike = list(_unlike_layers(layers, description, target))
    errors = served.sentences("refused") + [text for status, text in unlike if status == "refused"]
    warnings = served.sentences("unknown") + [text for status, text in unlike if status == "unknown"]
    return _exporter_of(served), errors, warnings


def check_stored(layers: Sequence[LayerSetting], exporter: str) -> None:
    """Refuse formats that checkpoints of an exporter have no place for, before any work.

    Raises:
        PlanError: there are such; they are named, with the exporters that do have a place.
    """
    served = _served_layers(layers, None, 1)
    found = unstored(served, plugins().exporter(exporter))
    if not found:
        return
    others = [name for name in plugins().exporter_names() if not unstored(served, plugins().exporter(name))]
    shown = "; ".join(f"{what}: {listed(names, 2)}" for what, names in found.items())
    raise PlanError(
        f"{exporter} checkpoints have no place for these formats: {shown}. Exporters that have: "
        f"{', '.join(others) or 'none'}; with a target, what that engine loads is written"
    )


def _exporter_of(served: Serving) -> str | None:
    return None if served.status == "refused" else served.exporter or None


def _served_layers(
    layers: Sequence[LayerSetting], description: ModelDescription | None, tp: int
) -> dict[str, ServedLayer]:
    fused = fused_names(description)
    served: dict[str, ServedLayer] = {}
    for layer in layers:
        if layer.is_quantized:
            name, quantized = layer.site.name, layer.site.quantized
            shapes = {
                slot.quantizer: _rank_shapes(layer, slot.quantizer, description, tp)
                for slot in quantized.weight_slots()
            }
            served |= served_parts(
                name, quantized, _chains(layer), shapes, name in fused, tuple(layer.transforms().values())
            )
    return served


def _chains(layer: LayerSetting) -> dict[str, tuple[QuantSpec, ...]]:
    return {name: tuple(stage.spec for stage in stages) for name, stages in layer.quantizers.items()}


def _rank_shapes(
    layer: LayerSetting, quantizer: str, description: ModelDescription | None, tp: int
) -> tuple[tuple[int, ...], ...]:
    """Return the shape of what one of `tp` ranks holds of a weight matrix, or of each of its segments."""
    shape = layer.site.quantized.quantizer_shape(layer.site.layer, quantizer)
    if quantizer not in layer.quantizers or shape is None or len(shape) not in (2, 3):
        return ()
    if len(shape) == 3:  # stacked experts, however an engine divides them
        return (shape,) if layer.site.is_stacked(quantizer) else ()
    rows, columns = shape
    if description is not None and layer.site.name in description.column_parallel:
        return tuple((part, columns) for part in rank_rows(layer.site.name, rows, description, tp))
    if description is not None and layer.site.name in description.row_parallel:
        return ((rows, columns // tp),)
    return (shape,)


def _unlike_layers(
    layers: Sequence[LayerSetting], description: ModelDescription | None, target: str
) -> Iterator[tuple[str, str]]:
    """Yield (status, sentence) for each group that the engine joins and whose layers differ in format."""
    by_name = {layer.site.name: layer for layer in layers}
    verdict = _engines()["unlike_layers"][target]
    for group in fused_groups(description):
        known = [by_name[name] for name in group if name in by_name]
        kinds: dict[str, list[str]] = {}
        for layer in known:
            kinds.setdefault(_kind(layer), []).append(layer.site.name)
        if len(kinds) > 1:
            found = "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items())
            yield (
                verdict["status"],
                (
                    f"{target} joins {', '.join(group)} into one layer, which needs one format: {verdict['status']} "
                    f"({verdict['evidence']}); found {found}"
                ),
            )


def _kind(layer: LayerSetting) -> str:
    chains = _chains(layer)
    parts = {"weights": chains.get("weight_quantizer"), "inputs": chains.get("input_quantizer")}
    return (
        ", ".join(f"{part} {' then '.join(map(str, chain))}" for part, chain in parts.items() if chain)
        or "left out"
    )


@lru_cache(maxsize=1)
def _engines() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("engines.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
