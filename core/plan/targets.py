"""Targets: whether the engine that will serve a checkpoint loads its formats, as exporters know it."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.core.errors import ConfigError, listed, nearest
from octavo.core.model.exporter import LayerFormat, Verdict
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
    by_format: dict[LayerFormat, list[str]] = {}
    for layer in layers:
        weight, inputs = (layer.quantizers.get(name, ()) for name in ("weight_quantizer", "input_quantizer"))
        if len(weight) == 1:
            layer_format = LayerFormat(weight[0].spec, inputs[0].spec if inputs else None)
            by_format.setdefault(layer_format, []).append(layer.site.name)
    errors, warnings = [], []
    for layer_format, names in by_format.items():
        verdict = _best_verdict(target, layer_format)
        text = (
            f"{target} and weights {layer_format.weight}, inputs {layer_format.inputs}: {verdict.status} "
            f"({verdict.evidence}); layers {listed(names, 3)}"
        )
        if verdict.status == "refused":
            errors.append(text)
        elif verdict.status == "unknown":
            warnings.append(text)
    return errors, warnings


def _best_verdict(target: str, layer_format: LayerFormat) -> Verdict:
    exporters = [plugins().exporter(name) for name in plugins().exporter_names()]
    verdicts = [exporter.serves(target, layer_format) for exporter in exporters]
    return min(verdicts, key=lambda verdict: _BEST_FIRST.index(verdict.status))
