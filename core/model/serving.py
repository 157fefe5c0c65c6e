"""What a quantized model asks of the engine that will serve it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.calibration.max_scales import uncalibrated
from octavo.core.errors import ExportError, ModeError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.description import ModelDescription
from octavo.core.model.exporter import Dialect
from octavo.core.model.fused import fused_names
from octavo.core.model.sharded import whole_shape
from octavo.core.model.targets import ServedLayer, Serving, best_serving, served_parts
from octavo.core.model.tied import sharing_names
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
        ExportError: a static quantizer was never calibrated, it was itself read from a quantized checkpoint, or a
            quantized weight was tied to another module's since.
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
    _check_untied(model)


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
    description = plugins().describe_model(model)
    fused = fused_names(description)
    layers: dict[str, ServedLayer] = {}
    for name, layer in quantized_layers(model):
        if specs := active_specs(layer):
            stacked = {slot.quantizer for slot in layer.weight_slots() if slot.is_stacked}
            shapes = {
                q: _shapes(name, weight, description)
                for q, weight in layer.quantized_weights().items()
                if len(whole_shape(weight)) == 2 or q in stacked
            }
            layers |= served_parts(name, type(layer), specs, shapes, name in fused, _transforms(layer))
    served = best_serving(layers, target)
    if served.status == "refused":
        raise ExportError(
            "; ".join(served.sentences("refused")) + ". octavo.plan(…, target=…) says so before"
        )
    return served


def _shapes(name: str, weight: Tensor, description: ModelDescription | None) -> tuple[tuple[int, ...], ...]:
    """Return the shape of a weight [out, in], or of each segment of a fused one."""
    segments = description.segments.get(name) if description is not None else None
    if segments is None:
        return (whole_shape(weight),)
    return tuple((segments.num_rows(role), whole_shape(weight)[-1]) for role in segments.rows_per_group)


def _transforms(layer: QuantModule) -> tuple[str, ...]:
    """Return what the quantizers of a layer that do more than round do, each once."""
    stages = [stage for quantizer in layer.quantizers().values() for stage in quantizer.stages()]
    found = [str(one) for stage in stages for one in (stage.rotation, stage.bias) if one is not None]
    return tuple(dict.fromkeys(found))


def _check_untied(model: nn.Module) -> None:
    """Refuse a weight that was tied after it was quantized: checkpoints hold tied weights once, in one format."""
    sharing = sharing_names(model)
    for layer_name, layer in quantized_layers(model):
        specs = active_specs(layer)
        for slot in layer.weight_slots():
            name = f"{layer_name}.{slot.parameter}".removeprefix(".")
            if name in sharing and slot.quantizer in specs:
                raise ExportError(
                    f"{name} is quantized, and was tied to {listed(sharing[name])} since; a checkpoint would hold "
                    "one of them. Give it a parameter of its own, or disable its quantizer (octavo.disable_quantizer)"
                )
