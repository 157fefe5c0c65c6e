"""Exporter objects that only read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from octavo.core.errors import ExportError
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import Dialect, LayerFormat, QuantizedCheckpoint, Verdict
from octavo.core.model.shard_reader import read_json
from octavo.exporters.foreign.awq import AwqLayout
from octavo.exporters.foreign.gptq import GptqLayout
from octavo.exporters.foreign.layout import Layout
from octavo.exporters.foreign.reader import IntegerCheckpoint


@dataclass(frozen=True)
class ReadOnlyExporter:
    """Reads one tool's checkpoints; see `core.model.exporter.Exporter`.

    Attributes:
        name: By which plugins call it, and `quantization_config` in config.json.
        layout: Returns the layout that a `quantization_config` describes, given its file.
    """

    name: str
    layout: Callable[[Mapping[str, Any], Path], Layout]

    @property
    def quant_method(self) -> str:
        """By which a `quantization_config` in config.json names it."""
        return self.name

    @property
    def dialect(self) -> Dialect:
        """Nothing.

        Raises:
            ExportError: always.
        """
        self._refuse()

    def dialect_for(self, target: str) -> Dialect:
        """Raise ExportError."""
        self._refuse()

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this format."""
        file = directory / "config.json"
        found = read_json(file).get("quantization_config") if file.is_file() else None
        return isinstance(found, dict) and found.get("quant_method") == self.quant_method

    def open(self, directory: Path) -> QuantizedCheckpoint:
        """Open a checkpoint."""
        file = directory / "config.json"
        return IntegerCheckpoint(directory, self.layout(read_json(file)["quantization_config"], file))

    def stores(self, layer: LayerFormat) -> bool:
        """Return False: such checkpoints are not written."""
        return False

    def serves(self, target: str, layer: LayerFormat) -> Verdict:
        """Say that such checkpoints are not written."""
        return Verdict("refused", f"{self.name} checkpoints are read, not written")

    def serves_shape(self, target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
        """Say the same."""
        return self.serves(target, layer)

    def serves_cache(self, target: str, cache: QuantSpec) -> Verdict:
        """Say that such checkpoints have no quantized cache."""
        return Verdict("refused", f"{self.name} checkpoints quantize weights only")

    def serves_mixture(self, target: str, layers: Collection[LayerFormat]) -> Verdict:
        """Say that such checkpoints have one format."""
        return Verdict("refused", f"{self.name} checkpoints have one format")

    def export(self, model: nn.Module, export_dir: Path, **options: Any) -> NoReturn:
        """Raise ExportError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ExportError(
            f"{self.name} checkpoints are read, not written; octavo.export_hf_checkpoint writes INT4 weights for "
            "target='vllm' as compressed-tensors"
        )


AWQ = ReadOnlyExporter("awq", AwqLayout)
GPTQ = ReadOnlyExporter("gptq", GptqLayout)
