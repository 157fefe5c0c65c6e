"""Skeleton: the model of a config without its weights, and where a checkpoint's tensors are in it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.expert_layout import layout_in_files
from octavo.core.plugins import plugins


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device.

    Attributes:
        model: It.
        layout: Where the tensors of a quantized checkpoint are in it.
    """

    model: nn.Module
    layout: CheckpointLayout

    @classmethod
    def of(cls, directory: Path, dtype: torch.dtype, is_quantized: Callable[[str], bool]) -> Skeleton:
        """Build the model whose config is in `directory`; no code of its own is run.

        Args:
            directory: A folder with the framework's config.
            dtype: Of the model.
            is_quantized: As in `layout_in_files`.

        Raises:
            ConfigError, CheckpointError: the framework cannot build it.
        """
        with torch.device("meta"):
            model = plugins().build_model(directory, dtype, False)
        return cls(model, layout_in_files(model, is_quantized))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a checkpoint may have."""
        state = self.model.state_dict()
        return {
            name: tuple(place.of(state[place.name]).shape) for name, place in self.layout.places().items()
        }

    def missing(self, names: Collection[str]) -> list[str]:
        """Return the tensors that a checkpoint lacks which has those called `names`; tied ones need be there once."""
        state = self.model.state_dict(keep_vars=True)
        parts = {
            name: (id(state[place.name]), place.index, place.segment)
            for name, place in self.layout.places().items()
        }
        found = {parts[name] for name in names if name in parts}
        return sorted(name for name, part in parts.items() if part not in found)
