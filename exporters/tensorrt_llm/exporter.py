"""The exporter object of this dialect, as core knows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_source import NamedSource, Ranks
from octavo.core.model.export_report import ExportReport
from octavo.core.model.exporter import LayerFormat, QuantizedCheckpoint, Verdict
from octavo.exporters.tensorrt_llm.conversion import write_converted
from octavo.exporters.tensorrt_llm.dialect import TensorRtLlmDialect
from octavo.exporters.tensorrt_llm.formats import format_for
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.rank_reader import is_tensorrt_llm
from octavo.exporters.tensorrt_llm.reader import TensorRtLlmCheckpoint
from octavo.exporters.tensorrt_llm.writer import NAME, export_tensorrt_llm_checkpoint

_ONE_RANK = Layout(1, 1)
# The engines that `target` names elsewhere read Hugging Face checkpoints; TensorRT-LLM's with its PyTorch backend.
_OTHER_READER = Verdict("refused", "only TensorRT-LLM's engine builder reads TensorRT-LLM checkpoints")


class TensorRtLlmExporter:
    """Writes and reads TensorRT-LLM checkpoints; see `core.model.exporter.Exporter`.

    Args:
        layout: Over which ranks `write` divides what is no model.
    """

    name = NAME
    quant_method = NAME
    has_own_config = True
    dialect = TensorRtLlmDialect()

    def __init__(self, layout: Layout = _ONE_RANK) -> None:
        self._layout = layout

    def dialect_for(self, target: str) -> TensorRtLlmDialect:
        """Return the numbers that the engine builder `target` reads: the same."""
        return TensorRtLlmDialect(target)

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this format."""
        return is_tensorrt_llm(directory)

    def open(self, directory: Path) -> QuantizedCheckpoint:
        """Open a checkpoint of any layout."""
        return TensorRtLlmCheckpoint(directory)

    def stores(self, layer: LayerFormat) -> bool:
        """Whether a checkpoint can be written of a layer of this format."""
        return format_for(layer) is not None

    def serves(self, target: str, layer: LayerFormat) -> Verdict:
        """Say that no engine that `target` names reads these checkpoints."""
        return _OTHER_READER

    def serves_shape(self, target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
        """Say the same of a weight."""
        return _OTHER_READER

    def serves_cache(self, target: str, cache: QuantSpec) -> Verdict:
        """Say the same of the cache."""
        return _OTHER_READER

    def serves_mixture(self, target: str, layers: Collection[LayerFormat]) -> Verdict:
        """Say the same of several formats."""
        return _OTHER_READER

    def export(self, model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
        """Write `model` to `export_dir`; options are those of `export_tensorrt_llm_checkpoint`."""
        return export_tensorrt_llm_checkpoint(model, export_dir=export_dir, **options)

    def for_ranks(self, ranks: Ranks) -> TensorRtLlmExporter:
        """Return the exporter that divides what is no model over `ranks`."""
        return TensorRtLlmExporter(Layout(ranks.tp, ranks.pp, ranks.ep))

    def write(
        self, source: NamedSource, folder: Path, max_shard_bytes: int, target: str | None
    ) -> tuple[int, int]:
        """Write what is no model, a file for each rank; see `core.model.checkpoint_source.SourceExporter`."""
        return write_converted(source, folder, self._layout)


EXPORTER = TensorRtLlmExporter()
