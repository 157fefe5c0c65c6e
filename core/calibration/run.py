"""Running algorithms: over a whole model with one pass of the data, or block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

from torch import nn

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.block_calls import CalibratedBlock, Stream, capture_calls, run_block
from octavo.core.calibration.calibration import Calibration, Groups
from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.distinct_inputs import Pass, passes
from octavo.core.calibration.expert_inputs import watching_experts
from octavo.core.calibration.expert_rules import ExpertRules
from octavo.core.calibration.forward_loop import ForwardLoop, run_forward_loop
from octavo.core.calibration.given import NOTHING_GIVEN, Given
from octavo.core.calibration.layerwise import Layerwise, blocks_of
from octavo.core.calibration.max_scales import calibrate_max, uncalibrated
from octavo.core.calibration.model_tail import ModelTail
from octavo.core.calibration.originals import Originals
from octavo.core.calibration.part import WHOLE, Part
from octavo.core.calibration.run_log import RunLog
from octavo.core.calibration.statistics import InputStatistics, Needs
from octavo.core.calibration.statistics.known import KnownStatistics
from octavo.core.calibration.support import check_gathers, check_supported
from octavo.core.console import track
from octavo.core.errors import CalibrationError
from octavo.core.graph.evaluating import evaluating
from octavo.core.plugins import plugins

Rows = list[dict[str, Any]]


def run_algorithms(
    model: nn.Module,
    algorithms: Sequence[Algorithm],
    forward_loop: ForwardLoop | None,
    quiet: bool,
    groups: Groups = (),
    given: Given = NOTHING_GIVEN,
    log: RunLog | None = None,
) -> tuple[Rows, Originals]:
    """Calibrate a quantized model, whose weights have scales already.

    Either all of it succeeds or the weights are as they were; the caller takes the quantizers off then.

    Args:
        model: The model.
        algorithms: One or more, in the order they run.
        forward_loop: The data, or None where nothing needs it.
        quiet: Print nothing.
        groups: Names of layers that read the same tensor.
        given: Statistics in place of data, their budget, and what to do with bad batches.
        log: Takes in what happened beside that.

    Returns:
        (what was done to each weight, the original values of weights that changed).

    Raises:
        CalibrationError: it yields nothing usable.
        UnsupportedError: an algorithm does not know a format, or blocks cannot run one after the other.
    """
    check_supported(model, algorithms)
    check_gathers(model, algorithms)
    if plugins().rank_groups(model):
        from octavo.core.ranks.maxima import check_ranks  # only for models that ranks share

        check_ranks(model, [algorithm.method for algorithm in algorithms])
    groups = tuple(tuple(group) for group in groups)
    layerwise = next((a.layerwise for a in algorithms if a.layerwise.enable), None)
    run = None if forward_loop is None else lambda: run_forward_loop(model, forward_loop, quiet)
    stages = Stages(model, algorithms, groups, quiet, given, RunLog() if log is None else log)
    try:
        if layerwise is None:
            stages.calibrate(run)
        else:
            _calibrate_layerwise(stages, layerwise, run)
    except BaseException:
        stages.originals.restore()
        raise
    return stages.rows, stages.originals


class Stages:
    """Calibrates a model at once, or part by part.

    Args:
        model: A quantized model, whose weights have scales already.
        algorithms, groups, quiet, given, log: As in `run_algorithms`.

    Attributes:
        rows: What was done to each weight so far.
        originals: The original values of weights that changed.
        needs: What the algorithms must know of inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        algorithms: Sequence[Algorithm],
        groups: Groups,
        quiet: bool,
        given: Given,
        log: RunLog,
    ) -> None:
        self.model = model
        self.quiet = quiet
        self.rows: Rows = []
        self.originals = Originals()
        self._algorithms = algorithms
        self._groups = groups
        self._given = given
        self._log = log
        self._known = None if given.statistics is None else KnownStatistics(given.statistics, model)
        self.is_known = self._known is not None
        self._experts = ExpertRules.of(algorithms)
        start = Needs(all_experts=self._experts.all_experts)
        self.needs = reduce(Needs.__or__, (algorithm.needs() for algorithm in algorithms), start)

    def calibrate(
        self, run: Callable[[], None] | None, part: Part = WHOLE, block: CalibratedBlock | None = None
    ) -> None:
        """Calibrate a part by one run of its data, or several within the budget, each followed by every algorithm."""
        if self._known is not None:
            self._known.check(self.needs, uncalibrated(self.model))
            run = self._known.show
        found = passes(self.model, part, self._groups, self.needs, self._given.budget)
        for number, one in enumerate(found):
            with self.originals.in_place(self.model) if number else nullcontext(), self._log.timing("data"):
                seen = self._look(run, part, one, is_first=number == 0)
            if block is not None and number == 0:
                self._run_streams(block)
            calibration = Calibration(
                self.model, self._groups, seen, self.originals, self.quiet, one.part, block, self._experts
            )
            for algorithm in self._algorithms:
                with self._log.timing(algorithm.method):
                    algorithm.run(calibration)
            self.rows += calibration.rows

    def _run_streams(self, block: CalibratedBlock) -> None:
        """Fill what a block returns, where nothing has yet: before any weight changes.

        An algorithm that asks for original inputs and comes first runs the original block itself.
        """
        original = block.original
        with collecting(self.model, {}):
            if original is None and not block.targets:  # nothing needed the data
                block.run_all()
            elif original is not None and not self._algorithms[0].needs().original_inputs:
                run_block(block.module, original.inputs, block.arguments, original.outputs)

    def _look(
        self, run: Callable[[], None] | None, part: Part, one: Pass, is_first: bool
    ) -> dict[str, InputStatistics]:
        """Run the data; return the statistics of the pass's inputs."""
        collectors = one.collectors(self.needs) if self._known is None else {}
        quiet = self.quiet or not is_first  # what a first run warned of, the next one would, too
        watched: AbstractContextManager[dict[str, InputStatistics]] = nullcontext({})
        if collectors and self._experts.own:
            watched = watching_experts(self.model, one.part, self.needs)
        log, bad_batches = self._log, self._given.bad_batches
        with watched as own:
            calibrate_max(
                self.model,
                run,
                quiet,
                self.needs,
                collectors,
                part,
                bad_batches,
                log,
                self._given.of_all_ranks,
            )
        if self._known is not None:
            return self._known.inputs([(found.name, found.device) for found in one.inputs], self.needs)
        return {c.name: c.statistics for c in collectors.values() if c.statistics is not None} | own


def _calibrate_layerwise(stages: Stages, options: Layerwise, run: Callable[[], None] | None) -> None:
    """Calibrate what is outside the blocks, then each block with what the quantized blocks before it return."""
    if stages.is_known:
        raise CalibrationError(
            "layerwise calibration runs each block on what the quantized blocks before it return, which no statistics "
            "hold; calibrate with data (--calib-data), or whole (leave out 'layerwise')"
        )
    if run is None:
        raise CalibrationError(
            "layerwise calibration needs data, and no forward_loop (--calib-data) was given"
        )
    model, blocks, limit = stages.model, blocks_of(stages.model), options.memory_limit
    stages.calibrate(run, Part(without=tuple(blocks)))
    inputs, tail = ActivationStore(limit), ModelTail(model, list(blocks.values()))
    with collecting(model, {}), tail.recording():  # nothing is rounded
        calls = capture_calls(blocks, run, inputs)
    originals, last = inputs, list(blocks)[-1]
    with evaluating(model):
        for name, module in track(list(blocks.items()), "calibrating blocks", stages.quiet):
            original = Stream(originals, ActivationStore(limit)) if stages.needs.original_inputs else None
            block = CalibratedBlock(
                name, module, inputs, ActivationStore(limit), calls.others[name], original,
                tail if name == last and tail.leads_to_logits(len(inputs)) else None,
            )  # fmt: skip
            stages.calibrate(block.run_all, Part(name), block)
            originals = block.targets if original is None else original.outputs
            inputs = originals
            if options.get_qdq_activations_from_prev_layer and name != last:
                inputs = ActivationStore(limit)
                run_block(module, block.inputs, block.arguments, inputs)
