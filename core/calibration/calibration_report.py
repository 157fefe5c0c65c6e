"""What calibration notes for the report: kept in the record of the mode, so that it is saved and restored with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from octavo.core.calibration.run_log import RunLog
from octavo.core.modes.record import history, part, set_history

_MODE = "quantize"


def noted(
    rows: Sequence[dict[str, Any]], log: RunLog, cost: Mapping[str, float], changed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what one run notes, JSON-ready.

    Args:
        rows: What was done to each weight.
        log: What happened beside that.
        cost: Time and memory of all of it (`measured`).
        changed: Names of parameters that hold other values now.
    """
    return {
        "changed_weights": list(changed),
        "weights": list(rows),
        "tokens_per_expert": log.tokens_per_expert,
        "warnings": log.warnings,
        "cost": {**cost, "seconds_of": log.seconds},
    }


def calibration_report(model: nn.Module) -> dict[str, Any]:
    """Return what the runs over a model noted; empty where none did."""
    records = [record for record in history(model) if record.mode == _MODE]
    return dict(records[-1].state.get("report") or {}) if records else {}


def check_report(state: Mapping[str, Any], where: str) -> None:
    """Refuse a record's state whose report is damaged; one without a report is fine.

    Raises:
        CheckpointError: a part is missing or of another kind; it is named.
    """
    if not state.get("report"):
        return
    report = part(state, "report", dict, where)
    for name, kind in (("tokens_per_expert", dict), ("warnings", list), ("cost", dict)):
        part(report, name, kind, f"the report in {where}")
    for row in part(report, "weights", list, f"the report in {where}"):
        part(row, "weight", str, f"a row of the report in {where}")
        part(row, "algorithm", str, f"a row of the report in {where}")


def add_to_report(model: nn.Module, report: Mapping[str, Any]) -> None:
    """Add what a further run noted, if anything; `cost` then is that of the last one."""
    before = calibration_report(model)
    if not any(report.get(key) for key in ("weights", "tokens_per_expert", "warnings", "changed_weights")):
        return
    both = {
        "changed_weights": sorted({*before.get("changed_weights", []), *report["changed_weights"]}),
        "weights": [*before.get("weights", []), *report["weights"]],
        "tokens_per_expert": {**before.get("tokens_per_expert", {}), **report["tokens_per_expert"]},
        "warnings": [*before.get("warnings", []), *report["warnings"]],
        "cost": report["cost"],
    }
    records = [
        replace(record, state={**record.state, "report": both}) if record.mode == _MODE else record
        for record in history(model)
    ]
    set_history(model, tuple(records))
