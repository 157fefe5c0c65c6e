"""What a quantized model asks of the engine that will serve it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.calibration.max import uncalibrated
from octavo.core.errors import ExportError, ModeError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import Dialect
from octavo.core.model.fused import fused_groups
from octavo.core.model.targets import ServedLayer, Serving, best_serving, served_parts
from octavo.core.modes.record import last_record
from octavo.core.modules import QuantModule, quantized_layers
from octavo.core.plugins import plugins


def active_specs(layer: QuantModule) -> dict[str, list[QuantSpec]]:
    """Return the formats of each quantizer of a layer that is on."""
    specs = {
        name: [stage.spec for stage in quantizer.stages() if stage.enabled and stage.spec is not None]
        for name, quantizer in layer.quantizers().items()
    }
    return {name: chain for name, chain in specs.items() if chain}


def check_exportable(model: nn.Module) -> None:
    """Refuse a model that no checkpoint can be made of.

    Raises:
        ModeError: it is not quantized, or its weights are folded.
        ExportError: a static quantizer was never calibrated, or it was itself read from a quantized checkpoint.
    """
    record = last_record(model, "quantize")
    if record is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    check_not_folded(model, "export it")
    if "checkpoint" in record.config:
        raise ExportError(
            f"the model was read from {record.config['checkpoint']} and its weights are dequantized; copy that "
            "checkpoint, or quantize the original model again"
        )
    waiting = [name for name, _ in uncalibrated(model)]
    if waiting:
        raise ExportError(
            f"{len(waiting)} quantizers were never calibrated: {listed(waiting)}; run octavo.calibrate with data first"
        )


def unstored_quantizers(model: nn.Module, dialect: Dialect) -> Iterator[str]:
    """Yield a warning if quantizers are on that checkpoints of `dialect` have no place for."""
    unstored = [
        f"{name}.{quantizer}"
        for name, layer in quantized_layers(model)
        for quantizer in active_specs(layer)
        if not dialect.has_place_for(layer, quantizer)
    ]
    if unstored:
        yield f"the dialect has no place for {len(unstored)} quantizers: {listed(unstored, 2)}"


def model_serving(model: nn.Module, target: str) -> Serving:
    """Return from which exporter's checkpoint of `model` the engine `target` loads it.

    Raises:
        ConfigError: the target is unknown.
        ModeError, ExportError: as in `check_exportable`.
        ExportError: it loads none; formats, evidence and layers are named.
    """
    check_exportable(model)
    fused = {name for group in fused_groups(plugins().describe_model(model)) for name in group}
    layers: dict[str, ServedLayer] = {}
    for name, layer in quantized_layers(model):
        if specs := active_specs(layer):
            stacked = {slot.quantizer for slot in layer.weight_slots() if slot.is_stacked}
            weights = layer.quantized_weights().items()
            shapes = {q: tuple(weight.shape) for q, weight in weights if weight.dim() == 2 or q in stacked}
            layers |= served_parts(name, type(layer), specs, shapes, name in fused)
    served = best_serving(layers, target)
    if served.status == "refused":
        raise ExportError(
            "; ".join(served.sentences("refused")) + ". octavo.plan(…, target=…) says so before"
        )
    return served
