"""Writing what was trained, at the end of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from octavo.core.errors import ConfigError
from octavo.core.model.atomic_folder import check_place
from octavo.core.model.export_report import ExportReport
from octavo.core.model.serving import model_serving
from octavo.core.plugins import plugins

_PREFERRED = "unified_hf"
_FOR_RANKS = "tensorrt_llm"  # its checkpoints have a file for each rank, and no tokenizer


@dataclass(frozen=True)
class TrainerExport:
    """Where a trained model goes, and in what form.

    Attributes:
        directory: A new or empty folder.
        exporter: Name of the exporter; None for the one that the target loads best.
        target: Engine that will serve the checkpoint, or None.
        tp: Tensor-parallel size it will be served with.

    Raises ConfigError, PluginError or ExportError at once where it could not be written at the end.
    """

    directory: Path
    exporter: str | None = None
    target: str | None = None
    tp: int = 1

    def __post_init__(self) -> None:
        if self.exporter is not None:
            plugins().exporter(self.exporter)
        check_place(self.directory.resolve(), overwrite=False)

    def write(self, model: nn.Module, tokenizer: Any, quiet: bool) -> ExportReport:
        """Write the model.

        Raises:
            ExportError, CheckpointError: as `octavo.export_hf_checkpoint`.
        """
        name = self.exporter
        if name is None and self.target is not None:
            name = model_serving(model, self.target).exporter
        form = {"inference_tensor_parallel": self.tp} if name == _FOR_RANKS else {"tokenizer": tokenizer}
        exporter = plugins().exporter(str(name))
        return exporter.export(model, self.directory, quiet=quiet, target=self.target, **form)


def export_of(
    export_dir: str | Path | None, exporter: str | None, target: str | None, tp: int
) -> TrainerExport | None:
    """Return what is written at the end; None without a folder. Without exporter and target it is the peer's dialect.

    Raises:
        ConfigError: an exporter is named, and no folder.
    """
    if export_dir is not None:
        return TrainerExport(
            Path(export_dir), exporter or (_PREFERRED if target is None else None), target, tp
        )
    if exporter is not None:
        raise ConfigError(f"exporter={exporter!r} without export_dir: give the folder to write to")
    return None
