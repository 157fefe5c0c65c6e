"""Whether a model is finalized: the mark that `finalize` leaves on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from octavo.core.errors import ModeError
from octavo.core.modes.record import part

FINALIZATION = "_octavo_finalization"


@dataclass(frozen=True)
class LastingFinalization:
    """What is known of a finalization that cannot be undone, since weights were packed in its numbers.

    Attributes:
        dialect: Name of the dialect.
        differences: How that differs from the dialect without a target.
        folded: Layers whose `pre_quant_scale` is folded.
        notes: Why others are not.
    """

    dialect: str
    differences: tuple[str, ...] = ()
    folded: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `from_json` reads."""
        lists = {"differences": self.differences, "folded": sorted(self.folded), "notes": self.notes}
        return {"dialect": self.dialect, **{name: list(found) for name, found in lists.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> LastingFinalization:
        """Read what `to_json` returned.

        Raises:
            CheckpointError: a part is missing or of another kind; it is named.
        """
        differences, folded, notes = (
            part(data, name, list, where) for name in ("differences", "folded", "notes")
        )
        return cls(part(data, "dialect", str, where), tuple(differences), frozenset(folded), tuple(notes))


def finalized_for(model: nn.Module) -> str | None:
    """Return the name of the dialect that the model is finalized for, or None."""
    record = model.__dict__.get(FINALIZATION)
    return None if record is None else str(record.dialect)


def lasting_finalization(model: nn.Module) -> LastingFinalization | None:
    """Return the finalization of a model whose weights are packed in a dialect's numbers, or None."""
    record = model.__dict__.get(FINALIZATION)
    return record if isinstance(record, LastingFinalization) else None


def check_not_finalized(model: nn.Module, doing: str) -> None:
    """Refuse what cannot be done while formats and scales are a dialect's.

    Raises:
        ModeError: the model is finalized; `doing` is named.
    """
    if (lasting := lasting_finalization(model)) is not None:
        raise ModeError(
            f"the model's weights are packed in the numbers of {lasting.dialect}, which stay; for {doing} it, load and "
            "quantize the original model again"
        )
    if (dialect := finalized_for(model)) is not None:
        raise ModeError(
            f"the model is finalized for {dialect}; call octavo.unfinalize(model) before {doing} it"
        )


def make_lasting(model: nn.Module) -> None:
    """Drop what undoing the model's finalization, if there is one, would take."""
    record = model.__dict__.get(FINALIZATION)
    if record is not None:
        model.__dict__[FINALIZATION] = LastingFinalization(
            record.dialect, record.differences, record.folded, record.notes
        )


def forget_finalization(model: nn.Module) -> None:
    """Drop the record of a finalization that is undone, or whose quantizers are gone."""
    model.__dict__.pop(FINALIZATION, None)
