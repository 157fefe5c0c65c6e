"""The mode `distill`: a model that learns from a teacher, which is not saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

DISTILL = "distill"
ATTRIBUTE = "_octavo_distillation"


class DistillMode:
    """The record says that a model was trained by a teacher; a restored one needs `octavo.distill` with it to go on."""

    name = DISTILL
    version = 1

    def describe(self, model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record's state, which is empty."""
        return dict(state)

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Do nothing: the teacher was not saved."""

    def commit(self, model: nn.Module) -> None:
        """Do nothing: nothing was replaced."""

    def undo(self, model: nn.Module) -> None:
        """Take the hooks off the model."""
        distillation = model.__dict__.pop(ATTRIBUTE, None)
        if distillation is not None:
            distillation.close()
