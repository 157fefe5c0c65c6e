"""The report of one run: what was quantized how, how well, at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from octavo.core.calibration.calibration_report import calibration_report
from octavo.core.model.export_report import ExportReport
from octavo.core.modes.record import last_record

VERSION = 1


def run_report(
    model: nn.Module, rows: Sequence[dict[str, Any]], exported: ExportReport, left_out: Sequence[str]
) -> dict[str, Any]:
    """Return the report of a model that was quantized and exported, JSON-ready; docs/report.md describes it.

    Args:
        model: The model.
        rows: A row for each quantized weight (`weight_rows`).
        exported: What the exporter says.
        left_out: Modules with weights that are not quantized.
    """
    record, run = last_record(model, "quantize"), calibration_report(model)
    return {
        "version": VERSION,
        "model": type(model).__name__,
        "config": record.config if record is not None else {},
        "exporter": exported.exporter,
        "totals": {
            "weights": len(rows),
            "fallbacks": sum(row["fallback"] is not None for row in rows),
            "tensors": exported.num_tensors,
            "bytes": exported.num_bytes,
        },
        "weights": list(rows),
        "tokens_per_expert": run.get("tokens_per_expert", {}),
        "left_out": list(left_out),
        "warnings": [*exported.warnings, *run.get("warnings", [])],
        "differences": list(exported.differences),
        "cost": run.get("cost", {}),
    }
