"""PartExporter: an exporter whose dialect can be written block by block."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from octavo.core.model.checkpoint_source import CheckpointSource
from octavo.core.model.checkpoint_writer import ModelExport
from octavo.core.model.spelled_files import Spelling


@runtime_checkable
class PartExporter(Protocol):
    """An exporter that can say what it writes of one block, before it has seen the others."""

    def part(self, part: nn.Module, target: str | None) -> ModelExport:
        """Return what of a calibrated part of a model is written, for the engine `target` or for none.

        Raises:
            ExportError: a format has no place in the dialect; its layers are named.
        """

    def spelling(self, source: CheckpointSource, target: str | None) -> Spelling:
        """Return how the whole is written, once all parts are known."""
