"""Running algorithms: over a whole model with one pass of the data, or block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from torch import nn

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.block_calls import CalibratedBlock, Stream, capture_calls, run_block
from octavo.core.calibration.calibration import Calibration, Groups, Originals, first_readers, input_name
from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.forward_loop import ForwardLoop, run_forward_loop
from octavo.core.calibration.layerwise import Layerwise, blocks_of
from octavo.core.calibration.max_scales import calibrate_max
from octavo.core.calibration.model_tail import ModelTail
from octavo.core.calibration.part import WHOLE, Part
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.console import track
from octavo.core.errors import CalibrationError
from octavo.core.graph.evaluating import evaluating
from octavo.core.modules import quantized_layers
from octavo.core.quantizers import TensorQuantizer

Rows = list[dict[str, Any]]


def run_algorithms(
    model: nn.Module,
    algorithms: Sequence[Algorithm],
    forward_loop: ForwardLoop | None,
    quiet: bool,
    groups: Groups = (),
) -> tuple[Rows, Originals]:
    """Calibrate a quantized model, whose weights have scales already.

    Either all of it succeeds or the weights are as they were; the caller takes the quantizers off then.

    Args:
        model: The model.
        algorithms: One or more, in the order they run.
        forward_loop: The data, or None where nothing needs it.
        quiet: Print nothing.
        groups: Names of layers that read the same tensor.

    Returns:
        (what was done to each weight, the original values of weights that changed).

    Raises:
        CalibrationError: it yields nothing usable.
        UnsupportedError: an algorithm does not know a format, or blocks cannot run one after the other.
    """
    groups = tuple(tuple(group) for group in groups)
    layerwise = next((a.layerwise for a in algorithms if a.layerwise.enable), None)
    run = None if forward_loop is None else lambda: run_forward_loop(model, forward_loop, quiet)
    stages = _Stages(model, algorithms, groups, quiet)
    try:
        if layerwise is None:
            stages.calibrate(run)
        else:
            _calibrate_layerwise(stages, layerwise, run)
    except BaseException:
        stages.originals.restore()
        raise
    return stages.rows, stages.originals


class _Stages:
    """Calibrates a model at once, or part by part."""

    def __init__(
        self, model: nn.Module, algorithms: Sequence[Algorithm], groups: Groups, quiet: bool
    ) -> None:
        self.model = model
        self.quiet = quiet
        self.rows: Rows = []
        self.originals = Originals()
        self._algorithms = algorithms
        self._groups = groups
        self.needs = reduce(Needs.__or__, (algorithm.needs() for algorithm in algorithms), Needs())

    def calibrate(
        self, run: Callable[[], None] | None, part: Part = WHOLE, block: CalibratedBlock | None = None
    ) -> None:
        """Calibrate a part by one run of its data, then by every algorithm in turn."""
        inputs = self._input_collectors(part) if self.needs.any_input else {}
        calibrate_max(self.model, run, self.quiet, self.needs, inputs, part)
        if block is not None and block.original is None and not block.targets:  # nothing needed the data
            with collecting(self.model, {}):
                block.run_all()
        if (
            block is not None
            and block.original is not None
            and not self._algorithms[0].needs().original_inputs
        ):
            with collecting(self.model, {}):  # before any weight changes
                run_block(block.module, block.original.inputs, block.arguments, block.original.outputs)
        seen = {c.name: c.statistics for c in inputs.values() if c.statistics is not None}
        calibration = Calibration(self.model, self._groups, seen, self.originals, self.quiet, part, block)
        for algorithm in self._algorithms:
            algorithm.run(calibration)
        self.rows += calibration.rows

    def _input_collectors(self, part: Part) -> dict[TensorQuantizer, StatisticsCollector]:
        """Return a collector for each distinct input of a quantized weight, by the quantizer that shows it first."""
        first, collectors = first_readers(self._groups), {}
        layers = {name: layer for name, layer in quantized_layers(self.model) if part.has(name)}
        for name, layer in layers.items():
            for slot in layer.weight_slots():
                reader = first.get(name, name)
                if reader not in layers or slot.inputs not in layers[reader].quantizer_names:
                    continue
                quantizer = layers[reader].quantizers()[slot.inputs].stages()[0]
                collectors[quantizer] = StatisticsCollector(input_name(name, slot, first), self.needs)
        return collectors


def _calibrate_layerwise(stages: _Stages, options: Layerwise, run: Callable[[], None] | None) -> None:
    """Calibrate what is outside the blocks, then each block with what the quantized blocks before it return."""
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
