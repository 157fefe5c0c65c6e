"""Calibrating one part of a model whose weights are loaded, on what the parts before it return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.block_calls import BlockCalls, run_block
from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.given import Given
from octavo.core.calibration.max_scales import calibrate_weights
from octavo.core.calibration.model_tail import ModelTail
from octavo.core.calibration.originals import Originals
from octavo.core.calibration.part import Part
from octavo.core.calibration.run import Stages
from octavo.core.calibration.run_log import RunLog
from octavo.core.graph.evaluating import evaluating
from octavo.core.modules import quantized_layers
from octavo.core.streaming.model_part import ModelPart


@dataclass
class PartInputs:
    """What a part reads, for all calls of the data.

    Attributes:
        run: Runs the part on it.
        outputs: What it returns, filled by the first run; None where nobody needs that.
    """

    run: Callable[[], None]
    outputs: ActivationStore | None = None


@dataclass
class PartNotes:
    """What calibrating a part noted: `Stages.rows`, names of changed parameters, `RunLog` in JSON."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    log: dict[str, Any] = field(default_factory=dict)


def block_run(
    name: str, part: ModelPart, calls: BlockCalls, inputs: ActivationStore, outputs: ActivationStore | None
) -> PartInputs:
    """Return how a block is run; what it returns the first time is kept in `outputs`."""
    block = part.get_submodule(name)

    def run() -> None:
        wanted = outputs if outputs is not None and not outputs else None
        run_block(block, inputs, calls.others[name], wanted)

    return PartInputs(run, outputs)


def rest_run(tail: ModelTail, outputs: ActivationStore) -> PartInputs:
    """Return how what is outside the blocks is run, on what the last block returned."""

    def run() -> None:
        with torch.no_grad():
            for hidden, call in zip(outputs, tail.calls, strict=True):
                tail.after_blocks(hidden, call)

    return PartInputs(run)


def calibrate_part(
    part: ModelPart,
    scope: Part,
    algorithms: Sequence[Algorithm],
    groups: Sequence[Sequence[str]],
    budget: int | None,
    inputs: PartInputs | None,
    quiet: bool,
) -> PartNotes:
    """Calibrate the quantizers of a part as `quantize` does those of a whole model.

    Args:
        part: The part, its weights loaded and its quantizers attached.
        scope: The same, as algorithms are told.
        algorithms: In the order they run.
        groups: Layers of it that read the same tensor.
        budget: Bytes of statistics in memory; None is no limit.
        inputs: What it reads; None where nothing needs data.
        quiet: Print no warnings.

    Raises:
        CalibrationError: it yields nothing usable.
    """
    log, originals = RunLog(), Originals()
    rows: list[dict[str, Any]] = []
    with evaluating(part):
        if any(True for _ in quantized_layers(part)):
            calibrate_weights(part)
            if algorithms:
                stages = Stages(part, algorithms, tuple(map(tuple, groups)), quiet, Given(budget=budget), log)
                stages.calibrate(None if inputs is None else inputs.run, scope)
                rows, originals = stages.rows, stages.originals
        if inputs is not None and inputs.outputs is not None and not inputs.outputs:
            with originals.in_place(part), collecting(part, {}):  # nothing is rounded
                inputs.run()
    return PartNotes(rows, originals.names(part), asdict(log))
