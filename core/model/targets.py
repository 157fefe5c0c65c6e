"""Targets: from which exporter's checkpoints a serving engine loads a model, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from octavo.core.errors import ConfigError, listed, nearest
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import Exporter, LayerFormat, Verdict
from octavo.core.model.vision_towers import tower_verdicts
from octavo.core.modules import QuantAttention, QuantConvolution, QuantEmbedding, QuantModule
from octavo.core.plugins import plugins

TARGETS = ("vllm", "sglang", "trtllm", "transformers")
_PREFERRED = "unified_hf"
_BEST_FIRST = ("loads", "unknown", "refused")


@dataclass(frozen=True)
class ServedLayer:
    """One quantized layer as an engine meets it.

    Attributes:
        chains: The formats that each of its quantizers applies in turn, by the quantizer's short name.
        shapes: Shape [out, in] of its weight on one rank, or of each segment of a fused one; [experts, out, in] of
            all of a stack; none where it has no such weight.
        is_fused: For the engine it is part of a joined layer (q/k/v, gate/up), or is such a layer itself.
        is_linear: It multiplies with its weight, as all layers do whose quantized weights checkpoints store.
        transforms: What is done to queries, keys and values before they are rounded.
    """

    chains: Mapping[str, Sequence[QuantSpec]]
    shapes: tuple[tuple[int, ...], ...] = ()
    is_fused: bool = False
    is_linear: bool = True
    transforms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Serving:
    """What an engine makes of a model from one exporter's checkpoints.

    Attributes:
        exporter: The exporter's name, or empty when no plugin brings one.
        findings: (verdict, sentence that names format, evidence and layers) of each format and shape.
    """

    exporter: str
    findings: tuple[tuple[Verdict, str], ...]

    @property
    def status(self) -> str:
        """The worst verdict of all."""
        return max((verdict.status for verdict, _ in self.findings), key=_BEST_FIRST.index, default="loads")

    def sentences(self, status: str) -> list[str]:
        """Return the findings of one status."""
        return [text for verdict, text in self.findings if verdict.status == status]


def served_parts(
    name: str,
    quantized: type[QuantModule],
    chains: Mapping[str, Sequence[QuantSpec]],
    shapes: Mapping[str, tuple[tuple[int, ...], ...]],
    is_fused: bool,
    transforms: tuple[str, ...] = (),
) -> dict[str, ServedLayer]:
    """Return what an engine meets of one layer of the class `quantized`, each of its weights for itself.

    Nothing of norms and poolings, of whose quantizers checkpoints hold nothing.

    Args:
        name: The layer's name.
        quantized: Its quantized class.
        chains: The formats of its quantizers that are on.
        shapes: As in `ServedLayer`, by quantizer.
        is_fused: As in `ServedLayer`.
        transforms: As in `ServedLayer`.
    """
    if issubclass(quantized, QuantAttention):
        return {name: ServedLayer(chains, transforms=transforms)}
    is_linear = not issubclass(quantized, (QuantConvolution, QuantEmbedding))
    parts = {}
    for slot in quantized.weight_slots():
        part = {
            "weight_quantizer": [spec.unstacked() for spec in chains.get(slot.quantizer, ())],
            "input_quantizer": chains.get(slot.inputs, ()),
        }
        key = f"{name}.{slot.parameter}" if slot.is_stacked else name
        parts[key] = ServedLayer(part, shapes.get(slot.quantizer, ()), is_fused, is_linear)
    return parts


def check_target(target: str) -> None:
    """Refuse an engine that is not known.

    Raises:
        ConfigError: there is none of that name.
    """
    if target not in TARGETS:
        raise ConfigError(
            f"unknown target {target!r}; known: {', '.join(TARGETS)}.{nearest(target, TARGETS)}"
        )


def best_serving(layers: Mapping[str, ServedLayer], target: str) -> Serving:
    """Return what `target` makes of these layers, from the exporter whose checkpoints it loads best.

    A checkpoint has one dialect, so exporters are compared by their worst verdict; where the engine refuses both, one
    that has something it loads is what the refusal is about. The peer's dialect wins ties.

    Raises:
        ConfigError: the target is unknown.
    """
    check_target(target)
    names = sorted(plugins().exporter_names(), key=lambda name: name != _PREFERRED)
    if not names:
        nobody = Verdict("unknown", "no plugin that is loaded has an exporter")
        return Serving("", ((nobody, f"{target}: {nobody.status} ({nobody.evidence})"),))
    servings = [serving(plugins().exporter(name), layers, target) for name in names]
    return min(servings, key=lambda one: (_BEST_FIRST.index(one.status), not one.sentences("loads")))


def unstored(layers: Mapping[str, ServedLayer], exporter: Exporter) -> dict[str, list[str]]:
    """Return the formats of weights that checkpoints of `exporter` have no place for, with their layers."""
    found: dict[str, list[str]] = {}
    for name, layer in layers.items():
        weight, inputs = layer.chains.get("weight_quantizer", ()), layer.chains.get("input_quantizer", ())
        if layer.is_linear and len(weight) in (1, 2) and len(inputs) <= 1:
            layer_format = LayerFormat(
                weight[0], inputs[0] if inputs else None, weight[1] if weight[1:] else None
            )
            if not exporter.stores(layer_format):
                found.setdefault(str(layer_format), []).append(name)
    return found


def serving(exporter: Exporter, layers: Mapping[str, ServedLayer], target: str) -> Serving:
    """Return what `target` makes of these layers from checkpoints of `exporter`."""
    weighted = [name for name, layer in layers.items() if layer.chains.get("weight_quantizer")]
    towers = tower_verdicts(exporter.name, target, weighted)
    found = [
        *_verdicts(exporter, layers, target),
        *(("quantized weights in a vision tower", verdict, names) for verdict, names in towers.items()),
    ]
    findings = [
        (verdict, f"{target} and {what}: {verdict.status} ({verdict.evidence}); layers {listed(names, 3)}")
        for what, verdict, names in found
    ]
    return Serving(exporter.name, tuple(findings))


def _verdicts(
    exporter: Exporter, layers: Mapping[str, ServedLayer], target: str
) -> Iterator[tuple[str, Verdict, list[str]]]:
    """Yield (what, verdict, layers) for every format and shape, and for all formats in one checkpoint."""
    formats: dict[LayerFormat, list[str]] = {}
    caches: dict[QuantSpec, list[str]] = {}
    for name, layer in layers.items():
        weight, inputs = layer.chains.get("weight_quantizer", ()), layer.chains.get("input_quantizer", ())
        if weight and not layer.is_linear:
            verdict = Verdict("refused", "checkpoints store quantized linear layers only")
            yield f"weights {_shown(weight)} of other layers", verdict, [name]
        elif len(weight) in (1, 2) and len(inputs) <= 1:
            then = weight[1] if len(weight) > 1 else None
            layer_format = LayerFormat(weight[0], inputs[0] if inputs else None, then)
            formats.setdefault(layer_format, []).append(name)
        elif weight or inputs:
            what = f"weights {_shown(weight)}, inputs {_shown(inputs)}"
            yield (
                what,
                Verdict("refused", "checkpoints store one format of a weight, and one of its input"),
                [name],
            )
        for spec in {*layer.chains.get("k_bmm_quantizer", ()), *layer.chains.get("v_bmm_quantizer", ())}:
            caches.setdefault(spec, []).append(name)
    for layer_format, names in formats.items():
        verdict = exporter.serves(target, layer_format)
        yield str(layer_format), verdict, names
        if verdict.status != "refused":
            yield from _shape_verdicts(exporter, layer_format, {n: layers[n] for n in names}, target)
    yield from _transform_verdicts(layers)
    for cache, names in caches.items():
        yield f"keys and values {cache}", exporter.serves_cache(target, cache), names
    if len(formats) > 1:
        names = [name for group in formats.values() for name in group]
        yield f"{len(formats)} formats in one checkpoint", exporter.serves_mixture(target, formats), names


def _transform_verdicts(layers: Mapping[str, ServedLayer]) -> Iterator[tuple[str, Verdict, list[str]]]:
    verdict = Verdict("refused", "no engine is known that rotates, or subtracts biases, as a checkpoint says")
    for transform in dict.fromkeys(t for layer in layers.values() for t in layer.transforms):
        names = [name for name, layer in layers.items() if transform in layer.transforms]
        yield f"queries, keys or values {transform}", verdict, names


def _shape_verdicts(
    exporter: Exporter, layer_format: LayerFormat, layers: Mapping[str, ServedLayer], target: str
) -> Iterator[tuple[str, Verdict, list[str]]]:
    kinds: dict[tuple[tuple[int, ...], bool], list[str]] = {}
    for name, layer in layers.items():
        for shape in dict.fromkeys(layer.shapes):
            kinds.setdefault((shape, layer.is_fused), []).append(name)
    for (shape, is_fused), names in kinds.items():
        verdict = exporter.serves_shape(target, layer_format, shape, is_fused)
        if verdict.status != "loads":
            joined = ", part of a joined layer" if is_fused else ""
            yield f"weights {layer_format.weight} of shape {list(shape)} on one rank{joined}", verdict, names


def _shown(chain: Sequence[QuantSpec]) -> str:
    return " then ".join(map(str, chain)) or "None"
