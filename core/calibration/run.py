"""Running algorithms: one pass over the data for all of them, then each in turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from torch import nn

from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration, Groups, first_readers, input_name
from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.calibration.max_scales import calibrate_max
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.modules import quantized_layers
from octavo.core.quantizers import TensorQuantizer


def run_algorithms(
    model: nn.Module,
    algorithms: Sequence[Algorithm],
    forward_loop: ForwardLoop | None,
    quiet: bool,
    groups: Groups = (),
) -> Calibration:
    """Calibrate a quantized model, whose weights have scales already.

    Either all of it succeeds or the weights are as they were; the caller takes the quantizers off then.

    Args:
        model: The model.
        algorithms: One or more, in the order they run.
        forward_loop: The data, or None where nothing needs it.
        quiet: Print nothing.
        groups: Names of layers that read the same tensor.

    Returns:
        The run, whose `rows` say what was done.

    Raises:
        CalibrationError: it yields nothing usable.
        UnsupportedError: an algorithm does not know a format.
    """
    needs = reduce(Needs.__or__, (algorithm.needs() for algorithm in algorithms), Needs())
    groups = tuple(tuple(group) for group in groups)
    inputs = _input_collectors(model, groups, needs) if needs.any_input else {}
    calibrate_max(model, forward_loop, quiet, needs, inputs)
    seen = {c.name: c.statistics for c in inputs.values() if c.statistics is not None}
    calibration = Calibration(model, groups, seen, quiet)
    try:
        for algorithm in algorithms:
            algorithm.run(calibration)
    except BaseException:
        calibration.restore_weights()
        raise
    return calibration


def _input_collectors(
    model: nn.Module, groups: Groups, needs: Needs
) -> dict[TensorQuantizer, StatisticsCollector]:
    """Return a collector for each distinct input of a quantized weight, by the quantizer that shows it first."""
    first, collectors = first_readers(groups), {}
    layers = dict(quantized_layers(model))
    for name, layer in layers.items():
        for slot in layer.weight_slots():
            reader = first.get(name, name)
            if reader not in layers or slot.inputs not in layers[reader].quantizer_names:
                continue
            quantizer = layers[reader].quantizers()[slot.inputs].stages()[0]
            collectors[quantizer] = StatisticsCollector(input_name(name, slot, first), needs)
    return collectors
