"""The exporter object of this dialect, as core knows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_source import CheckpointSource
from octavo.core.model.export_report import ExportReport
from octavo.core.model.exporter import LayerFormat, QuantizedCheckpoint, Verdict
from octavo.core.model.spelled_files import write_checked
from octavo.exporters.compressed_tensors.dialect import CompressedTensorsDialect
from octavo.exporters.compressed_tensors.formats import format_for
from octavo.exporters.compressed_tensors.reader import CompressedTensorsCheckpoint, holds_compressed_tensors
from octavo.exporters.compressed_tensors.source_spelling import spelling_of
from octavo.exporters.compressed_tensors.writer import NAME, export_compressed_tensors


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

    def serves(self, target: str, layer: LayerFormat) -> Verdict:
        """Say whether the engine `target` loads a layer of this format."""
        known = format_for(layer)
        if known is None:
            return Verdict("refused", "compressed-tensors checkpoints of this format are not written")
        return known.targets.get(target, Verdict("unknown", f"{known.name} was never tried there"))

    def serves_shape(self, target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
        """Say whether `target` loads a weight [out, in], or experts [experts, out, in], of this format."""
        known = format_for(layer)
        if len(shape) == 3 and known is not None and target in known.experts:
            return known.experts[target]
        rule = {} if known is None else known.multiples.get(target, {})
        odd = [size for size in shape if len(shape) == 2 and size % rule.get("length", 1)]
        if odd:
            return Verdict("unknown", f"{rule['evidence']}: {odd[0]} is none")
        return Verdict("loads", "no rule about shapes is known")

    def serves_cache(self, target: str, cache: QuantSpec) -> Verdict:
        """Say that a quantized cache is not written in this dialect."""
        return Verdict("refused", "a quantized cache is not written as compressed-tensors yet")

    def serves_mixture(self, target: str, layers: Collection[LayerFormat]) -> Verdict:
        """Say that several formats are not written in this dialect."""
        return Verdict("refused", "several formats are not written as compressed-tensors yet")

    def export(self, model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
        """Write `model` to `export_dir`; options are those of `export_hf_checkpoint`."""
        return export_compressed_tensors(model, export_dir, **options)

    def write(
        self, source: CheckpointSource, folder: Path, max_shard_bytes: int, target: str | None
    ) -> tuple[int, int]:
        """Write what is no model; see `core.model.checkpoint_source.SourceExporter`."""
        return write_checked(source, spelling_of(source), folder, max_shard_bytes, self.name)


EXPORTER = CompressedTensorsExporter()
