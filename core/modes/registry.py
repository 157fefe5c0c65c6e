"""The registry of modes: transformations of a model that are recorded, undone, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from torch import nn

from octavo.core.errors import ModeError, nearest

_MODES = {
    "quantize": "octavo.core.calibration.mode:QuantizeMode",
    "fold_weight": "octavo.core.calibration.fold_mode:FoldMode",
    "distill": "octavo.core.distillation.mode:DistillMode",
    "compress": "octavo.core.compression.mode:CompressMode",
}


class Mode(Protocol):
    """One kind of transformation.

    Attributes:
        name: Its name in records.
        version: Version of the `state` it writes; it must read all earlier ones.
    """

    name: str
    version: int

    def describe(self, model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state to save now, for a model that was recorded with `state`."""

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Rebuild the structure that `state` describes on a plain model; tensors are loaded afterwards."""

    def commit(self, model: nn.Module) -> None:
        """Drop what `undo` of `restore` would need; called when all modes are restored and tensors are loaded."""

    def undo(self, model: nn.Module) -> None:
        """Take every trace of the mode off the model, also after a failure half-way."""


def mode_named(name: str) -> Mode:
    """Return the mode called `name`.

    Raises:
        ModeError: there is none.
    """
    if name not in _MODES:
        raise ModeError(f"unknown mode {name!r}; known: {', '.join(_MODES)}.{nearest(name, _MODES)}")
    module, _, attribute = _MODES[name].partition(":")
    return cast(Mode, getattr(import_module(module), attribute)())
