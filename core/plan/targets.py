"""Targets: whether the engine that will serve a checkpoint loads its formats, as exporters know it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from octavo.core.errors import ConfigError, listed, nearest
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import Exporter, LayerFormat, Verdict
from octavo.core.modules import QuantConvolution, QuantEmbedding
from octavo.core.plan.settings import LayerSetting
from octavo.core.plugins import plugins

TARGETS = ("vllm", "sglang", "trtllm", "transformers")
_BEST_FIRST = ("loads", "unknown", "refused")


def target_problems(layers: Iterable[LayerSetting], target: str | None) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) about serving these layers with `target`; None serves anything.

    Raises:
        ConfigError: the target is unknown.
    """
    if target is None:
        return [], []
    if target not in TARGETS:
        raise ConfigError(
            f"unknown target {target!r}; known: {', '.join(TARGETS)}.{nearest(target, TARGETS)}"
        )
    errors, warnings = [], []
    for what, verdict, names in _verdicts(layers, target):
        text = f"{target} and {what}: {verdict.status} ({verdict.evidence}); layers {listed(names, 3)}"
        if verdict.status == "refused":
            errors.append(text)
        elif verdict.status == "unknown":
            warnings.append(text)
    return errors, warnings


def _verdicts(layers: Iterable[LayerSetting], target: str) -> Iterator[tuple[str, Verdict, list[str]]]:
    """Yield (format, verdict, layers) for every format of these layers, and for all of them in one checkpoint."""
    formats: dict[LayerFormat, list[str]] = {}
    caches: dict[QuantSpec, list[str]] = {}
    for layer in layers:
        chains = {name: [stage.spec for stage in stages] for name, stages in layer.quantizers.items()}
        for (
            slot
        ) in layer.site.quantized.weight_slots():  # norms and poolings have none, and checkpoints no place
            weight, inputs = chains.get(slot.quantizer, []), chains.get(slot.inputs, [])
            if (refusal := _refusal(layer, weight, inputs)) is not None:
                yield *refusal, [layer.site.name]
            elif weight:
                layer_format = LayerFormat(weight[0].unstacked(), inputs[0] if inputs else None)
                formats.setdefault(layer_format, []).append(layer.site.name)
        for spec in {*chains.get("k_bmm_quantizer", []), *chains.get("v_bmm_quantizer", [])}:
            caches.setdefault(spec, []).append(layer.site.name)
    for layer_format, names in formats.items():
        what = f"weights {layer_format.weight}, inputs {layer_format.inputs}"
        yield what, _best(exporter.serves(target, layer_format) for exporter in _exporters()), names
    for cache, names in caches.items():
        what = f"keys and values {cache}"
        yield what, _best(exporter.serves_cache(target, cache) for exporter in _exporters()), names
    if len(formats) > 1:
        names = [name for group in formats.values() for name in group]
        verdict = _best(exporter.serves_mixture(target, formats) for exporter in _exporters())
        yield f"{len(formats)} formats in one checkpoint", verdict, names


def _refusal(
    layer: LayerSetting, weight: Sequence[QuantSpec], inputs: Sequence[QuantSpec]
) -> tuple[str, Verdict] | None:
    """Return what no engine's checkpoint stores of a layer, and why."""
    if weight and issubclass(layer.site.quantized, (QuantConvolution, QuantEmbedding)):
        what = f"{type(layer.site.layer).__name__} weights {_shown(weight)}"
        return what, Verdict("refused", "checkpoints store quantized linear layers only")
    if (weight or inputs) and (len(weight) != 1 or len(inputs) > 1):
        what = f"weights {_shown(weight)}, inputs {_shown(inputs)}"
        return what, Verdict("refused", "checkpoints store one format of a weight, and one of its input")
    return None


def _shown(chain: Sequence[QuantSpec]) -> str:
    return " then ".join(map(str, chain)) or "None"


def _exporters() -> list[Exporter]:
    return [plugins().exporter(name) for name in plugins().exporter_names()]


def _best(verdicts: Iterable[Verdict]) -> Verdict:
    nobody = Verdict("unknown", "no plugin that is loaded has an exporter")
    return min(verdicts, key=lambda verdict: _BEST_FIRST.index(verdict.status), default=nobody)
