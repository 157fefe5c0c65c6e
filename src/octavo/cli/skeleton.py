"""The plan of a checkpoint, made before its weights are loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from octavo.core.config.presets import Config
from octavo.core.errors import CalibrationError, listed
from octavo.core.plan import Plan
from octavo.core.plan import plan as plan_model
from octavo.core.plan.data_needs import waiting_for_data
from octavo.core.plugins import plugins


def plan_checkpoint(
    model: Path,
    config: Config,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    target: str | None,
    tp: int,
    stats_budget: str | None = None,
) -> Plan:
    """Return the plan for the model of a folder, built on the meta device.

    Raises:
        CheckpointError: the folder holds a checkpoint that is quantized already, or cannot be read.
        ConfigError, UnsupportedError, PlanError: as in `octavo.plan`.
    """
    plugins().check_unquantized(model)
    with torch.device("meta"):
        skeleton = plugins().build_model(model, dtype, trust_remote_code)
    return plan_model(skeleton, config, target=target, tp=tp, stats_budget=stats_budget)


def check_needs_no_data(made: Plan) -> None:
    """Refuse a plan with quantizers that only data can calibrate; weights are their own data.

    Raises:
        CalibrationError: there are such quantizers; the first are named.
    """
    waiting = waiting_for_data(made.layers)
    if waiting:
        raise CalibrationError(
            f"{len(waiting)} quantizers need calibration data and no --calib-data was given: {listed(waiting)}"
        )
