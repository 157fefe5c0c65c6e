"""What an exporter says of the checkpoint it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        directory: The checkpoint.
        num_tensors: Number of tensors in its shards.
        num_bytes: Bytes of these tensors.
        warnings: What the checkpoint does not hold, or nobody reads.
        exporter: Name of the exporter that wrote it.
        differences: How it differs from the peer's bytes for the sake of the target, one sentence each.
    """

    directory: Path
    num_tensors: int
    num_bytes: int
    warnings: tuple[str, ...]
    exporter: str
    differences: tuple[str, ...] = ()
