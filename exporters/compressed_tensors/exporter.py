"""The exporter object of this dialect, as core knows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_source import CheckpointSource
from octavo.core.model.checkpoint_writer import ModelExport
from octavo.core.model.export_report import ExportReport
from octavo.core.model.exporter import LayerFormat, QuantizedCheckpoint, Verdict
from octavo.core.model.spelled_files import Spelling, write_checked
from octavo.exporters.compressed_tensors.dialect import CompressedTensorsDialect
from octavo.exporters.compressed_tensors.formats import cache_verdict, format_for, mixture_verdict
from octavo.exporters.compressed_tensors.metadata import FP8_CACHE
from octavo.exporters.compressed_tensors.reader import CompressedTensorsCheckpoint, holds_compressed_tensors
from octavo.exporters.compressed_tensors.source_spelling import spelling_of
from octavo.exporters.compressed_tensors.writer import NAME, export_compressed_tensors, model_export


class CompressedTensorsExporter:
    """Writes and reads compressed-tensors checkpoints; see `core.model.exporter.Exporter`."""

    name = NAME
    quant_method = "compressed-tensors"
    dialect = CompressedTensorsDialect()

    def dialect_for(self, target: str) -> CompressedTensorsDialect:
        """Return the numbers that the engine `target` computes with exactly: the same for all."""
        return self.dialect

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this format."""
        return holds_compressed_tensors(directory)

    def open(self, directory: Path) -> QuantizedCheckpoint:
        """Open a checkpoint."""
        return CompressedTensorsCheckpoint(directory)

    def stores(self, layer: LayerFormat) -> bool:
        """Whether a checkpoint can be written of a layer of this format."""
        return format_for(layer) is not None

    def serves(self, target: str, layer: LayerFormat) -> Verdict:
        """Say whether the engine `target` loads a layer of this format."""
        known = format_for(layer)
        if known is None:
            return Verdict("refused", "compressed-tensors checkpoints of this format are not written")
        return known.targets.get(target, Verdict("unknown", f"{known.name} was never tried there"))

    def serves_shape(self, target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
        """Say whether `target` loads a weight [out, in], or experts [experts, out, in], of this format."""
        known = format_for(layer)
        if known is None:  # `serves` has refused it
            return Verdict("refused", "this format is not written")
        return known.shape_verdict(target, shape, is_fused)

    def serves_cache(self, target: str, cache: QuantSpec) -> Verdict:
        """Say whether the engine `target` quantizes keys and values in this format."""
        if cache != FP8_CACHE:
            return Verdict("refused", f"compressed-tensors checkpoints have a cache of {FP8_CACHE}")
        return cache_verdict(target)

    def serves_mixture(self, target: str, layers: Collection[LayerFormat]) -> Verdict:
        """Say whether the engine `target` loads a checkpoint whose layers have all of these formats."""
        return mixture_verdict(target)

    def export(self, model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
        """Write `model` to `export_dir`; options are those of `export_hf_checkpoint`."""
        return export_compressed_tensors(model, export_dir, **options)

    def part(self, part: nn.Module, target: str | None) -> ModelExport:
        """Say what of a model's part is written; see `core.streaming.part_exporter.PartExporter`."""
        return model_export(part, target)

    def spelling(self, source: CheckpointSource, target: str | None) -> Spelling:
        """Return how the whole is written; see `core.streaming.part_exporter.PartExporter`."""
        return spelling_of(source)

    def write(
        self, source: CheckpointSource, folder: Path, max_shard_bytes: int, target: str | None
    ) -> tuple[int, int]:
        """Write what is no model; see `core.model.checkpoint_source.SourceExporter`."""
        return write_checked(source, spelling_of(source), folder, max_shard_bytes, self.name)


EXPORTER = CompressedTensorsExporter()
