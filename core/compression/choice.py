"""Which weights `compress` packs, and what keeps it from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.calibration.max_scales import uncalibrated
from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.errors import ConfigError, ModeError, UnsupportedError, listed, nearest
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import Exporter
from octavo.core.model.serving import active_specs
from octavo.core.model.stored_weight import StoredWeight
from octavo.core.model.tied import sharing_names
from octavo.core.modes.record import last_record
from octavo.core.modules import QuantConvolution, QuantEmbedding, quantized_layers
from octavo.core.plan import check_device

MOST_FORMATS = 2  # in turn: codes, and what `PackedChain` rounds their values to


def check_model(model: nn.Module) -> None:
    """Refuse a model whose weights cannot be packed.

    Raises:
        ModeError: it is not quantized, its weights are folded, or a quantizer was never calibrated.
        PlanError: weights are on the meta device, or sharded.
    """
    if last_record(model, "quantize") is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    check_not_folded(model, "compress it")
    check_device(model)
    waiting = [name for name, _ in uncalibrated(model)]
    if waiting:
        raise ModeError(
            f"{len(waiting)} quantizers were never calibrated: {listed(waiting)}; run octavo.calibrate with data first"
        )


def chosen_weights(model: nn.Module, patterns: str | Sequence[str] | None) -> list[StoredWeight]:
    """Return the weights to pack: those of layers whose names match a pattern, all without patterns.

    Raises:
        ConfigError: a pattern matches no layer with a quantized weight.
        ModeError: no weight is left to pack.
    """
    layers = {name: layer for name, layer in quantized_layers(model) if layer.weight_slots()}
    globs = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    for glob in globs if patterns is not None else ():
        if not any(fnmatchcase(name, glob) for name in layers):
            raise ConfigError(
                f"pattern {glob!r} matches none of the {len(layers)} layers with quantized weights."
                f"{nearest(glob, layers)}"
            )
    weights = [
        StoredWeight(name, layer, slot)
        for name, layer in layers.items()
        if any(fnmatchcase(name, glob) for glob in globs)
        for slot in layer.weight_slots()
        if slot.parameter not in layer.packed_parameters
    ]
    weights = [weight for weight in weights if _formats(weight)]
    if not weights:
        raise ModeError(
            "no weight is left to pack: those of these layers are packed already, or their quantizers are off"
        )
    return weights


def check_weights(model: nn.Module, weights: Iterable[StoredWeight], exporter: Exporter | None) -> None:
    """Refuse weights that cannot be packed, or not in the numbers of an exporter's dialect.

    Raises:
        UnsupportedError: a weight is tied to another module's, has too many formats in turn, a format that the
            dialect does not store, or no dims; all are named with the reason.
    """
    found = {weight.name: _problem(weight, exporter) for weight in weights}
    found |= {n: f"is tied to {listed(others)}" for n, others in sharing_names(model).items() if n in found}
    problems = [f"{name} {problem}" for name, problem in found.items() if problem]
    if problems:
        advice = "" if exporter is None else "; dialect='neutral' packs formats that no checkpoint stores"
        raise UnsupportedError(
            f"{len(problems)} weights cannot be packed: {listed(problems, 3)}. Leave these layers out by patterns"
            f"{advice}"
        )


def _problem(weight: StoredWeight, exporter: Exporter | None) -> str:
    """Return why a weight cannot be packed, or an empty string."""
    formats, first = _formats(weight), weight.layer.quantizers()[weight.slot.quantizer].stages()[0]
    if len(formats) > MOST_FORMATS or not first.enabled:
        return f"has {len(formats)} formats in turn ({' then '.join(map(str, formats))}), or the first is off"
    if not weight.shape:
        return "has no dim to pack codes along"
    if exporter is None:
        return ""
    if isinstance(weight.layer, (QuantConvolution, QuantEmbedding)):
        return f"({type(weight.layer).__name__}, {formats[0]}) has no place in the dialect {exporter.name}"
    layer_format = format_of(weight.layer, weight.slot)
    is_stored = layer_format is not None and exporter.stores(layer_format)
    return "" if is_stored else f"({layer_format}) has no place in the dialect {exporter.name}"


def _formats(weight: StoredWeight) -> list[QuantSpec]:
    """Return the formats of a weight that are on."""
    return active_specs(weight.layer).get(weight.slot.quantizer, [])
