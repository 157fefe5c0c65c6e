"""The mode `fold_weight`: weights that hold their rounded values, which cannot be undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from octavo.core.errors import ModeError
from octavo.core.modes.record import last_record

FOLD = "fold_weight"


class FoldMode:
    """Weights and switches travel in the state dict and in the record of `quantize`; this says that they are folded."""

    name = FOLD
    version = 1

    def describe(self, model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record's state, which is empty."""
        return dict(state)

    def restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Do nothing: the quantizers that are off are described by `quantize`."""

    def commit(self, model: nn.Module) -> None:
        """Do nothing: nothing is kept."""

    def undo(self, model: nn.Module) -> None:
        """Do nothing: called where restoring failed, before any weight was loaded."""


def check_not_folded(model: nn.Module, doing: str) -> None:
    """Refuse what needs the weights that folding rounded.

    Raises:
        ModeError: the model's weights are folded; `doing` is named.
    """
    if last_record(model, FOLD) is not None:
        raise ModeError(
            "the model's weights are folded: they hold rounded values, and the original ones are gone; to "
            f"{doing}, load and quantize the original model again"
        )
