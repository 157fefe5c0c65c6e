"""Whether a model is finalized: the mark that `finalize` leaves on it."""

from __future__ import annotations

from torch import nn

from octavo.core.errors import ModeError

FINALIZATION = "_octavo_finalization"


def finalized_for(model: nn.Module) -> str | None:
    """Return the name of the dialect that the model is finalized for, or None."""
    record = model.__dict__.get(FINALIZATION)
    return None if record is None else str(record.dialect)


def check_not_finalized(model: nn.Module, doing: str) -> None:
    """Refuse what cannot be done while formats and scales are a dialect's.

    Raises:
        ModeError: the model is finalized; `doing` is named.
    """
    if (dialect := finalized_for(model)) is not None:
        raise ModeError(
            f"the model is finalized for {dialect}; call octavo.unfinalize(model) before {doing} it"
        )


def forget_finalization(model: nn.Module) -> None:
    """Drop the record of a finalization that is undone, or whose quantizers are gone."""
    model.__dict__.pop(FINALIZATION, None)
