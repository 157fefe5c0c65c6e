"""In whose numbers weights are packed: those of a dialect, which stay, or the simulation's own."""

from __future__ import annotations

from torch import nn

from octavo.core.calibration.finalize import finalize
from octavo.core.calibration.finalized import finalized_for
from octavo.core.errors import ConfigError, ModeError
from octavo.core.model.exporter import Exporter
from octavo.core.model.serving import model_serving
from octavo.core.modules import packed_layers
from octavo.core.plugins import plugins

NEUTRAL = "neutral"
DEFAULT = "unified_hf"


def exporter_named(model: nn.Module, dialect: str, target: str | None) -> Exporter | None:
    """Return the exporter that will write what is packed; None for the neutral numbers.

    With a target, the default dialect stands for the one that this engine loads the model from, as in
    `export_hf_checkpoint`.

    Raises:
        PluginError: no exporter has that name.
        ConfigError: a target without a dialect, or an unknown one.
        ExportError: the target loads the model from no checkpoint.
    """
    if dialect == NEUTRAL:
        if target is not None:
            raise ConfigError(f"target={target!r} has a dialect's numbers; found dialect={dialect!r}")
        return None
    if target is not None and dialect == DEFAULT:
        dialect = model_serving(model, target).exporter
    return plugins().exporter(dialect)


def take_numbers(model: nn.Module, exporter: Exporter | None, target: str | None) -> None:
    """Give the model the numbers that its codes are to have, if it does not have them yet.

    Raises:
        ModeError: it has others.
    """
    wanted = None
    if exporter is not None:
        wanted = (exporter.dialect if target is None else exporter.dialect_for(target)).name
    found, is_packed = finalized_for(model), any(True for _ in packed_layers(model))
    if wanted == found:
        return
    if found is not None or is_packed:
        raise ModeError(
            f"the model has the numbers of {found or NEUTRAL}{' in packed weights' if is_packed else ''}, asked for "
            f"{wanted or NEUTRAL}; give compress that dialect"
            + ("" if is_packed else ", or call octavo.unfinalize(model) first")
        )
    assert exporter is not None  # noqa: S101 (wanted is its name)
    finalize(model, exporter.name, target)
