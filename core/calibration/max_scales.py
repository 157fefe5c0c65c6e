"""Scales from the largest magnitudes, or as a quantizer's own calibrator says: where every algorithm starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from octavo.core.calibration.bias_collector import BiasCollector
from octavo.core.calibration.collectors import AmaxCollector, AmaxMemo, Both, collecting
from octavo.core.calibration.experts import amax_of_unrouted, counting_tokens, routing_notes
from octavo.core.calibration.part import WHOLE, Part
from octavo.core.calibration.run_log import RunLog
from octavo.core.calibration.statistics.bad_batches import BadBatches
from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.calibration.statistics.needs import NOTHING, Needs
from octavo.core.console import say
from octavo.core.errors import CalibrationError, listed
from octavo.core.formats import QuantSpec
from octavo.core.modules import quantized_layers, tensor_quantizers
from octavo.core.plugins import plugins
from octavo.core.quantizers import Collector, TensorQuantizer


def calibrate_max(
    model: nn.Module,
    run: Callable[[], None] | None,
    quiet: bool,
    needs: Needs = NOTHING,
    inputs: Mapping[TensorQuantizer, StatisticsCollector] | None = None,
    part: Part = WHOLE,
    bad_batches: BadBatches | None = None,
    log: RunLog | None = None,
) -> None:
    """Calibrate every quantizer that is not calibrated yet, by one run of the data.

    Nothing is rounded in that run, and there is none when nothing needs it: `calibrate_weights` goes first.

    Args:
        model: A quantized model.
        run: Runs the data through the model, or that part of it; None without data.
        quiet: Print no warnings.
        needs: Whether every expert sees every token.
        inputs: Collectors of statistics to run along, by the quantizer of the input.
        part: Whose quantizers to calibrate.
        bad_batches: Notes batches that are not finite, and leaves them out; None refuses them.
        log: Takes in the tokens of experts, and the warnings.

    Raises:
        CalibrationError: data is needed and there is none, a quantizer was never reached, or statistics are not
            finite. The layers are named.
    """
    waiting, inputs = [(name, q) for name, q in uncalibrated(model) if part.has(name)], inputs or {}
    if not waiting and not inputs:
        return
    if run is None:
        names = [name for name, _ in waiting] or [collector.name for collector in inputs.values()]
        raise CalibrationError(
            f"{len(names)} quantizers need calibration data and no forward_loop (--calib-data) was given: "
            f"{listed(names)}"
        )
    memo = AmaxMemo()
    collectors = {q: _collector(q, q.spec, memo) for _, q in waiting if q.spec is not None}
    biases = {
        q: BiasCollector(q.bias, collectors[q])
        for q in collectors
        if q.bias is not None and not q.bias.dynamic
    }
    attached = _together({**collectors, **biases}, inputs)
    if bad_batches is not None:
        shown = {quantizer: collector.name for quantizer, collector in inputs.items()}
        attached = bad_batches.guards(attached, shown | {q: name for name, q in waiting})
    with collecting(model, attached), counting_tokens(model, needs.all_experts, part) as tokens:
        run()
    _combine_ranks(model, {q: collectors[q] for _, q in waiting}, dict(waiting))
    seen = {name: amax for name, q in waiting if (amax := collectors[q].amax) is not None}
    unrouted = amax_of_unrouted(seen, [name for name, _ in waiting if name not in seen], model)
    for name, quantizer in waiting:
        if name in unrouted and quantizer.spec is not None:
            collectors[quantizer] = AmaxCollector.of(quantizer.spec, unrouted[name])
    _check_reached([name for name, _ in waiting if name not in seen and name not in unrouted], bad_batches)
    _check_finite(seen, {name: collectors[q] for name, q in waiting})
    _set_states(collectors)
    for quantizer, collector in biases.items():
        quantizer.bias_value = None if collector.value is None else collector.value.float()
    notes = list(routing_notes(tokens, unrouted))
    for note in notes:
        say(f"warning: {note}", quiet)
    if log is not None:
        log.tokens_per_expert.update(tokens)
        log.warnings += notes


@torch.no_grad()
def calibrate_weights(model: nn.Module) -> None:
    """Calibrate every weight quantizer that is not calibrated yet, from its weight.

    Raises:
        CalibrationError: a weight has NaN or infinite values, also one whose format needs no calibration; it is
            named.
    """
    collectors: dict[TensorQuantizer, AmaxCollector] = {}
    looked_at: dict[str, AmaxCollector] = {}
    for layer_name, layer in quantized_layers(model):
        for quantizer_name, weight in layer.quantized_weights().items():
            if weight.is_meta:  # offloaded: the data run sees it, when its values are there
                continue
            for quantizer in layer.quantizers()[quantizer_name].stages():
                if quantizer.spec is None:
                    continue
                collector = _collector(quantizer, quantizer.spec)
                collector.collect(quantizer, weight)
                looked_at[f"{layer_name}.{quantizer_name}"] = collector
                if quantizer.needs_calibration:
                    collectors[quantizer] = collector
    _combine_ranks(model, collectors)
    _check_finite({name: c.amax for name, c in looked_at.items() if c.amax is not None})
    _set_states(collectors)


def uncalibrated(model: nn.Module) -> list[tuple[str, TensorQuantizer]]:
    """Return the quantizers, by name, that are on and have state that was never set."""
    return [(name, q) for name, q in tensor_quantizers(model) if q.enabled and q.needs_calibration]


def _collector(quantizer: TensorQuantizer, spec: QuantSpec, memo: AmaxMemo | None = None) -> AmaxCollector:
    if quantizer.calibrator.method == "max":
        return AmaxCollector(spec, memo)
    from octavo.core.calibration.histogram import HistogramCollector  # only where a calibrator asks for one

    return HistogramCollector(spec, quantizer.calibrator, memo)


def _combine_ranks(
    model: nn.Module,
    collectors: Mapping[TensorQuantizer, AmaxCollector],
    names: Mapping[str, TensorQuantizer] | None = None,
) -> None:
    """Let collectors have seen what those of other ranks have, where ranks see parts of the same tensors."""
    if plugins().rank_groups(model):
        from octavo.core.calibration.reduction import fill_unrouted, groups_of_quantizers, reduce_maxima

        groups = groups_of_quantizers(model)
        reduce_maxima(collectors, groups)
        fill_unrouted(names or {}, collectors, groups)


def _together(
    collectors: Mapping[TensorQuantizer, Collector], inputs: Mapping[TensorQuantizer, Collector]
) -> dict[TensorQuantizer, Collector]:
    """Return the collectors to attach; a quantizer that has one of each gets both."""
    attached = {**collectors, **inputs}
    for quantizer in collectors.keys() & inputs.keys():
        attached[quantizer] = Both(collectors[quantizer], inputs[quantizer])
    return attached


def _check_reached(unseen: Sequence[str], bad_batches: BadBatches | None) -> None:
    if bad_batches is not None:
        bad_batches.check_some_left(unseen)
    if unseen:
        raise CalibrationError(
            f"calibration data never reached {len(unseen)} quantizers: {listed(unseen)}; give data that runs "
            "these layers, or exclude them"
        )


def _check_finite(seen: Mapping[str, Tensor], data: Mapping[str, AmaxCollector] | None = None) -> None:
    bad = [name for name, amax in seen.items() if not amax.isfinite().all()]
    if data is not None:
        bad = [f"{name} ({_first_bad(data[name])})" for name in bad]
    if bad:
        raise CalibrationError(
            f"{len(bad)} quantizers saw NaN or infinite values: {listed(bad)}; look at these layers' weights and at "
            "the calibration data that reaches them"
        )


def _first_bad(collector: AmaxCollector) -> str:
    batch = collector.bad_batch()
    return "on another rank" if batch is None else f"first in batch {batch}"


def _set_states(collectors: Mapping[TensorQuantizer, AmaxCollector]) -> None:
    for quantizer, collector in collectors.items():
        state = collector.state()
        if state is not None:
            quantizer.set_state(**state)
