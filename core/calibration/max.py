"""The `max` algorithm: scales from the largest magnitude seen, over weights and over calibration data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from octavo.core.calibration.collectors import AmaxCollector, AmaxMemo, collecting
from octavo.core.calibration.forward_loop import ForwardLoop, run_forward_loop
from octavo.core.errors import CalibrationError, listed
from octavo.core.modules import quantized_layers, tensor_quantizers
from octavo.core.quantizers import TensorQuantizer


def calibrate_max(model: nn.Module, forward_loop: ForwardLoop | None, quiet: bool) -> None:
    """Calibrate every quantizer that is not calibrated yet.

    Weights need no data. Activations are seen by one run of `forward_loop`, in which nothing is rounded; it is
    not run when no activation needs it.

    Raises:
        CalibrationError: data is needed and there is none, a quantizer was never reached, or statistics are not
            finite. The layers are named.
    """
    calibrate_weights(model)
    waiting = uncalibrated(model)
    if not waiting:
        return
    if forward_loop is None:
        raise CalibrationError(
            f"{len(waiting)} quantizers need calibration data and no forward_loop was given: "
            f"{listed([name for name, _ in waiting])}"
        )
    memo = AmaxMemo()
    collectors = {q: AmaxCollector(q.spec, memo) for _, q in waiting if q.spec is not None}
    with collecting(model, collectors):
        run_forward_loop(model, forward_loop, quiet)
    unseen = [name for name, quantizer in waiting if collectors[quantizer].amax is None]
    if unseen:
        raise CalibrationError(
            f"calibration data never reached {len(unseen)} quantizers: {listed(unseen)}; give data that runs "
            "these layers, or exclude them"
        )
    _set_states(waiting, collectors)


@torch.no_grad()
def calibrate_weights(model: nn.Module) -> None:
    """Calibrate every weight quantizer that is not calibrated yet, from its weight.

    Raises:
        CalibrationError: a weight has NaN or infinite values; it is named.
    """
    waiting, collectors = [], {}
    for layer_name, layer in quantized_layers(model):
        for quantizer_name, weight in layer.quantized_weights().items():
            for quantizer in getattr(layer, quantizer_name).stages():
                if quantizer.needs_calibration and quantizer.spec is not None:
                    collectors[quantizer] = AmaxCollector(quantizer.spec)
                    collectors[quantizer].collect(quantizer, weight)
                    waiting.append((f"{layer_name}.{quantizer_name}", quantizer))
    _set_states(waiting, collectors)


def uncalibrated(model: nn.Module) -> list[tuple[str, TensorQuantizer]]:
    """Return the quantizers, by name, that are on and have state that was never set."""
    return [(name, q) for name, q in tensor_quantizers(model) if q.enabled and q.needs_calibration]


def _set_states(
    quantizers: list[tuple[str, TensorQuantizer]], collectors: dict[TensorQuantizer, AmaxCollector]
) -> None:
    bad = [name for name, q in quantizers for amax in _amax(collectors[q]) if not amax.isfinite().all()]
    if bad:
        raise CalibrationError(
            f"{len(bad)} quantizers saw NaN or infinite values: {listed(bad)}; look at these layers' weights and at "
            "the calibration data that reaches them"
        )
    for _, quantizer in quantizers:
        state = collectors[quantizer].state()
        if state is not None:
            quantizer.set_state(**state)


def _amax(collector: AmaxCollector) -> Iterator[torch.Tensor]:
    if collector.amax is not None:
        yield collector.amax
