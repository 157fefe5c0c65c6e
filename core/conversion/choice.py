"""Into which dialect a checkpoint is converted: by its name, or as an engine loads it best."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.core.conversion.survey import Survey
from octavo.core.errors import ConfigError, ExportError
from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_source import RankedExporter, Ranks, SourceExporter
from octavo.core.model.exporter import Dialect
from octavo.core.model.fused import joined_by_name
from octavo.core.model.targets import ServedLayer, best_serving, serving
from octavo.core.plugins import plugins


@dataclass(frozen=True)
class Choice:
    """Where a conversion goes.

    Attributes:
        name: The exporter's name.
        exporter: It.
        dialect: Whose numbers are written.
        unknown: What the engine was never tried with, one sentence each.
    """

    name: str
    exporter: SourceExporter
    dialect: Dialect
    unknown: tuple[str, ...] = ()


def check_asked(dialect: str | None, target: str | None, ranks: Ranks) -> None:
    """Refuse what names no place to go, before anything is read.

    Raises:
        ConfigError: neither a dialect nor a target is given.
        PluginError: no exporter has that name.
        ExportError: the exporter only reads, writes models only, or does not divide its checkpoints over such ranks.
    """
    if dialect is None and target is None:
        known = ", ".join(_writer_names())
        raise ConfigError(
            f"give a dialect to convert to (--to: {known}), or the engine to serve it (--target)"
        )
    if dialect is not None:
        _writer(dialect, ranks)


def chosen(survey: Survey, dialect: str | None, target: str | None, ranks: Ranks) -> Choice:
    """Return where a conversion goes; arguments as in `check_asked`.

    Raises:
        ConfigError: the target is unknown.
        ExportError: the engine loads no checkpoint with these formats, in this dialect if one is given.
    """
    if target is None:
        name = str(dialect)
        return Choice(name, _writer(name, ranks), plugins().exporter(name).dialect)
    layers = served_layers(survey)
    found = best_serving(layers, target)  # it checks the target's name, too
    if dialect is not None:
        found = serving(plugins().exporter(dialect), layers, target)
    if found.status == "refused":
        raise ExportError("; ".join(found.sentences("refused")))
    numbers = plugins().exporter(found.exporter).dialect_for(target)
    return Choice(found.exporter, _writer(found.exporter, ranks), numbers, tuple(found.sentences("unknown")))


def served_layers(survey: Survey) -> dict[str, ServedLayer]:
    """Return what an engine meets of the checkpoint."""
    joined = {name for group in joined_by_name(survey.weights) for name in group}
    layers = {}
    for name, weight in survey.weights.items():
        layer = weight.layer
        chains: dict[str, list[QuantSpec]] = {
            "weight_quantizer": [layer.weight, *([] if layer.then is None else [layer.then])],
            "input_quantizer": [] if layer.inputs is None else [layer.inputs],
        }
        layers[name] = ServedLayer(chains, (weight.shape,), name in joined)
    if survey.cache is not None:
        layers["keys and values"] = ServedLayer({"k_bmm_quantizer": [survey.cache]})
    return layers


def _writer(name: str, ranks: Ranks) -> SourceExporter:
    exporter = plugins().exporter(name)
    if not isinstance(exporter, SourceExporter):
        raise ExportError(
            f"checkpoints are not converted into {name}, which is read, or written from models, only; "
            f"give one of {', '.join(_writer_names())}"
        )
    if isinstance(exporter, RankedExporter):
        return exporter.for_ranks(ranks)
    if ranks != Ranks():
        raise ExportError(
            f"checkpoints of {name} are not divided over ranks, their engines divide them when they load them; leave "
            f"tp, pp and ep out, found {ranks.tp}, {ranks.pp} and {ranks.ep}"
        )
    return exporter


def _writer_names() -> list[str]:
    """Return the exporters that checkpoints are converted with."""
    return [
        name for name in plugins().exporter_names() if isinstance(plugins().exporter(name), SourceExporter)
    ]
