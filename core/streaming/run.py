"""One run: part after part is loaded, calibrated, written and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.attach import attach, detach
from octavo.core.calibration.block_calls import BlockCalls
from octavo.core.calibration.model_tail import ModelTail
from octavo.core.calibration.part import Part
from octavo.core.calibration.statistics.needs import NOTHING, Needs
from octavo.core.errors import UnsupportedError
from octavo.core.modes.record import ModeRecord, set_history
from octavo.core.plan.data_needs import waiting_for_data
from octavo.core.streaming.activations import SavedActivations
from octavo.core.streaming.block_inputs import block_inputs
from octavo.core.streaming.model_part import ModelPart
from octavo.core.streaming.output import GrowingOutput
from octavo.core.streaming.part_calibration import PartInputs, block_run, calibrate_part, rest_run
from octavo.core.streaming.part_writer import write_part
from octavo.core.streaming.progress import Progress
from octavo.core.streaming.streamed_model import REST, StreamedModel

_NOT_LOCAL = {
    "smooth": "folds factors by what whole forward passes show",
    "compensate": "carries what earlier blocks lost",
    "learned_rounding": "learns rounding on the quantized blocks before it",
}


@dataclass(frozen=True)
class RunOptions:
    """How parts are calibrated and written.

    Attributes:
        exporter: Name of the exporter.
        target: Engine that will serve the checkpoint, or None.
        activation_budget: Bytes of activations in memory.
        stats_budget: Bytes of statistics in memory; None is no limit.
        quiet: Print nothing.
    """

    exporter: str
    target: str | None
    activation_budget: int
    stats_budget: int | None
    quiet: bool


def check_local(algorithms: Sequence[Algorithm]) -> None:
    """Refuse algorithms that need more of a model than a block and its inputs.

    Raises:
        UnsupportedError: there is one; it is named.
    """
    for algorithm in algorithms:
        reason = _NOT_LOCAL.get(algorithm.method)
        if reason is None and algorithm.layerwise.enable:
            reason = "is asked for 'layerwise', on what quantized blocks return"
        if reason is not None:
            raise UnsupportedError(
                f"algorithm {algorithm.method!r} {reason}, which streaming does not do yet; choose another algorithm, "
                "or quantize in memory (leave out --stream)"
            )


class StreamRun:
    """Quantizes the parts of a model that are not finished.

    Args:
        opened: The model.
        algorithms: In the order they run.
        data: Batches of calibration data, or None.
        output: Takes the parts; knows which ones are finished.
        options: How.
    """

    def __init__(
        self,
        opened: StreamedModel,
        algorithms: Sequence[Algorithm],
        data: Sequence[Any] | None,
        output: GrowingOutput,
        options: RunOptions,
    ) -> None:
        self._opened = opened
        self._algorithms = algorithms
        self._data = data
        self._output = output
        self._options = options
        self._calls: BlockCalls | None = None
        self._tail: ModelTail | None = None
        self._rest_needs_data = self._reads_data(REST)

    def run(self, progress: Progress) -> None:
        """Finish every part.

        Raises:
            CalibrationError, ExportError, CheckpointError: it cannot be done; what is finished stays.
        """
        opened, finished = self._opened, set(self._output.finished)
        waiting = [part for part in opened.parts if part not in finished]
        inputs = self._first_inputs(waiting) if any(map(self._reads_data, waiting)) else None
        for part in waiting:
            inputs = self._part(part, inputs)
            number = len(finished) + waiting.index(part) + 1
            progress.part(part, number, self._source_bytes(part))

    def _first_inputs(self, waiting: Sequence[str]) -> ActivationStore:
        """Return what the first part that is not finished reads."""
        opened, budget = self._opened, self._options.activation_budget // 2
        saved = self._output.last_activations(budget)
        first = ActivationStore(0 if saved is not None else budget)
        self._calls, self._tail = block_inputs(
            opened.model, opened.blocks, opened.forms, opened.weights, self._data or [], first
        )
        if saved is None and waiting[0] != opened.parts[0]:
            raise UnsupportedError(
                "the run before kept no activations, and the rest of it needs them; start again (--overwrite)"
            )
        return first if saved is None else saved

    def _part(self, name: str, inputs: ActivationStore | None) -> ActivationStore | None:
        """Finish one part; return what it returned."""
        opened, options = self._opened, self._options
        tensors = opened.tensors_of(name)
        source = opened.weights.load(tensors)
        attach(opened.model, opened.layers_of(name))
        try:
            part = self._model_part(name, inputs)
            groups = opened.groups_of(name)
            set_history(part, (ModeRecord("quantize", 1, opened.plan.config, {"same_input": groups}),))
            outputs = self._outputs(name, inputs)
            notes = calibrate_part(
                part, self._scope(name), self._algorithms, groups, options.stats_budget,
                self._inputs(name, part, inputs, outputs), options.quiet,
            )  # fmt: skip
            spool = self._output.spool()
            layout = opened.layout_of(name)
            record = write_part(part, options.exporter, options.target, layout, notes, source, spool)
        finally:
            detach(opened.model)
            opened.weights.drop(tensors)
        self._output.commit(name, spool, record, outputs)
        self._output.write_shards()
        return outputs

    def _model_part(self, name: str, inputs: ActivationStore | None) -> ModelPart:
        if name == REST:
            return ModelPart(self._opened.model, without=list(self._opened.blocks))
        call = None
        if inputs is not None and self._calls is not None and len(inputs):
            call = self._calls.others[name][0].with_hidden(inputs[0])
        return ModelPart(self._opened.model, name, call=call)

    def _scope(self, name: str) -> Part:
        return Part(without=list(self._opened.blocks)) if name == REST else Part(name)

    def _outputs(self, name: str, inputs: ActivationStore | None) -> SavedActivations | None:
        """Return a store for what a part returns, if somebody needs it."""
        is_last = name == list(self._opened.blocks)[-1]
        if inputs is None or name == REST or (is_last and not self._rest_needs_data):
            return None
        return self._output.activations(self._options.activation_budget // 2)

    def _inputs(
        self, name: str, part: ModelPart, inputs: ActivationStore | None, outputs: SavedActivations | None
    ) -> PartInputs | None:
        if inputs is None or self._calls is None or self._tail is None:
            return None
        return (
            rest_run(self._tail, inputs)
            if name == REST
            else block_run(name, part, self._calls, inputs, outputs)
        )

    def _reads_data(self, part: str) -> bool:
        """Whether calibrating a part takes data."""
        needs = reduce(Needs.__or__, (algorithm.needs() for algorithm in self._algorithms), NOTHING)
        layers = self._opened.layers_of(part)
        return bool(waiting_for_data(layers)) or (needs.any_input and any(x.is_quantized for x in layers))

    def _source_bytes(self, part: str) -> int:
        weights = self._opened.weights
        return sum(weights.meta(name).nbytes for name in self._opened.tensors_of(part))
