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
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect
from octavo.exporters.unified_hf.reader import UnifiedHfCheckpoint, is_unified_hf
from octavo.exporters.unified_hf.schemes import scheme_for
from octavo.exporters.unified_hf.source_spelling import spelling_of
from octavo.exporters.unified_hf.targets import cache_verdict, layer_verdict, mixture_verdict, shape_verdict
from octavo.exporters.unified_hf.writer import export_hf_checkpoint, model_export


class UnifiedHfExporter:
    """Writes and reads unified Hugging Face checkpoints; see `core.model.exporter.Exporter`."""

    name = "unified_hf"
    quant_method = "modelopt"
    dialect = UnifiedHfDialect()

    def dialect_for(self, target: str) -> UnifiedHfDialect:
        """Return the numbers that the engine `target` computes with exactly."""
        return UnifiedHfDialect(target)

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this format."""
        return is_unified_hf(directory)

    def open(self, directory: Path) -> QuantizedCheckpoint:
        """Open a checkpoint."""
        return UnifiedHfCheckpoint(directory)

    def stores(self, layer: LayerFormat) -> bool:
        """Whether a checkpoint can be written of a layer of this format."""
        return scheme_for(layer) is not None

    def serves(self, target: str, layer: LayerFormat) -> Verdict:
        """Say whether the engine `target` loads a layer of this format."""
        return layer_verdict(target, layer)

    def serves_shape(self, target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
        """Say whether `target` loads a weight [out, in] of this format, which it joins with others or not."""
        return shape_verdict(target, layer, shape, is_fused)

    def serves_cache(self, target: str, cache: QuantSpec) -> Verdict:
        """Say whether the engine `target` quantizes keys and values in this format."""
        return cache_verdict(target, cache)

    def serves_mixture(self, target: str, layers: Collection[LayerFormat]) -> Verdict:
        """Say whether the engine `target` loads a checkpoint whose layers have all of these formats."""
        return mixture_verdict(target, layers)

    def export(self, model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
        """Write `model` to `export_dir`; options are those of `export_hf_checkpoint`."""
        return export_hf_checkpoint(model, export_dir=export_dir, **options)

    def part(self, part: nn.Module, target: str | None) -> ModelExport:
        """Say what of a model's part is written; see `core.streaming.part_exporter.PartExporter`."""
        return model_export(part, target)

    def spelling(self, source: CheckpointSource, target: str | None) -> Spelling:
        """Return how the whole is written; see `core.streaming.part_exporter.PartExporter`."""
        return spelling_of(source, peer=target is None)

    def write(
        self, source: CheckpointSource, folder: Path, max_shard_bytes: int, target: str | None
    ) -> tuple[int, int]:
        """Write what is no model; see `core.model.checkpoint_source.SourceExporter`."""
        return write_checked(source, self.spelling(source, target), folder, max_shard_bytes, self.name)


EXPORTER = UnifiedHfExporter()
