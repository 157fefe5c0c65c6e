"""Part: which modules of a model are calibrated at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A model without some blocks, or one of its blocks.

    Attributes:
        within: Name of the module whose inside it is; empty for the model.
        without: Names of modules inside it that do not belong to it.
        layers: Names of the layers that belong to it; None for all.
    """

    within: str = ""
    without: Collection[str] = ()
    layers: Collection[str] | None = None

    def has(self, name: str) -> bool:
        """Whether a module of this name belongs to it."""
        if self.layers is not None and name not in self.layers:
            return False
        return _is_inside(name, self.within) and not any(_is_inside(name, block) for block in self.without)


WHOLE = Part()


def _is_inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")
