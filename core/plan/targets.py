"""Targets: whether the engine that will serve a checkpoint loads its formats, as exporters know it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from octavo.core.errors import ConfigError, listed, nearest
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import Exporter, LayerFormat, Verdict
from octavo.core.modules import QuantAttention, QuantConvolution, QuantEmbedding
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
        if not layer.has_weight and not issubclass(layer.site.quantized, QuantAttention):
            continue  # norms and poolings: checkpoints hold nothing of their quantizers
        chains = {name: [stage.spec for stage in stages] for name, stages in layer.quantizers.items()}
        weight, inputs = chains.get("weight_quantizer", []), chains.get("input_quantizer", [])
        if weight and issubclass(layer.site.quantized, (QuantConvolution, QuantEmbedding)):
            what = f"{type(layer.site.layer).__name__} weights {_shown(weight)}"
            yield (
                what,
                Verdict("refused", "checkpoints store quantized linear layers only"),
                [layer.site.name],
            )
        elif len(weight) == 1 and len(inputs) <= 1:
            layer_format = LayerFormat(weight[0], inputs[0] if inputs else None)
            formats.setdefault(layer_format, []).append(layer.site.name)
        elif weight or inputs:
            what = f"weights {_shown(weight)}, inputs {_shown(inputs)}"
            evidence = "checkpoints store one format of a weight, and one of its input"
            yield what, Verdict("refused", evidence), [layer.site.name]
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


def _shown(chain: Sequence[QuantSpec]) -> str:
    return " then ".join(map(str, chain)) or "None"


def _exporters() -> list[Exporter]:
    return [plugins().exporter(name) for name in plugins().exporter_names()]


def _best(verdicts: Iterable[Verdict]) -> Verdict:
    nobody = Verdict("unknown", "no plugin that is loaded has an exporter")
    return min(verdicts, key=lambda verdict: _BEST_FIRST.index(verdict.status), default=nobody)
