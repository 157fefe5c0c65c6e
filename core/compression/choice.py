"""Which weights `compress` packs, and what keeps it from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from octavo.core.calibration.finalized import finalized_for
from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.calibration.max_scales import uncalibrated
from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.errors import ConfigError, ModeError, UnsupportedError, listed, nearest
from octavo.core.model.exporter import Exporter
from octavo.core.model.tied import sharing_names
from octavo.core.modes.record import last_record
from octavo.core.modules import QuantConvolution, QuantEmbedding, QuantModule, WeightSlot, quantized_layers
from octavo.core.plan import check_device
from octavo.core.quantizers import TensorQuantizer

MOST_FORMATS = 2  # in turn: codes, and what `PackedChain` rounds their values to


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """A quantized weight that is not packed.

    Attributes:
        layer_name: Its layer's name.
        layer: The layer.
        slot: Which of the layer's weights.
    """

    layer_name: str
    layer: QuantModule
    slot: WeightSlot

    @property
    def name(self) -> str:
        """The parameter's name in the model."""
        return f"{self.layer_name}.{self.slot.parameter}".removeprefix(".")

    def stages(self) -> list[TensorQuantizer]:
        """Return its quantizer's stages that are on."""
        stages = self.layer.quantizers()[self.slot.quantizer].stages()
        return [stage for stage in stages if stage.enabled and stage.spec is not None]


def check_model(model: nn.Module) -> None:
    """Refuse a model whose weights cannot be packed.

    Raises:
        ModeError: it is not quantized, its weights are folded, or a quantizer was never calibrated.
        PlanError: weights are on the meta device, or sharded.
    """
    if last_record(model, "quantize") is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    check_not_folded(model, "compress it")
    check_device(model)
    waiting = [name for name, _ in uncalibrated(model)]
    if waiting:
        raise ModeError(
            f"{len(waiting)} quantizers were never calibrated: {listed(waiting)}; run octavo.calibrate with data first"
        )


def chosen_weights(model: nn.Module, patterns: str | Sequence[str] | None) -> list[DenseWeight]:
    """Return the weights to pack: those of layers whose names match a pattern, all without patterns.

    Raises:
        ConfigError: a pattern matches no layer with a quantized weight.
        ModeError: no weight is left to pack.
    """
    layers = {name: layer for name, layer in quantized_layers(model) if layer.weight_slots()}
    globs = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    for glob in globs if patterns is not None else ():
        if not any(fnmatchcase(name, glob) for name in layers):
            raise ConfigError(
                f"pattern {glob!r} matches none of the {len(layers)} layers with quantized weights."
                f"{nearest(glob, layers)}"
            )
    weights = [
        DenseWeight(name, layer, slot)
        for name, layer in layers.items()
        if any(fnmatchcase(name, glob) for glob in globs)
        for slot in layer.weight_slots()
        if slot.parameter not in layer.packed_parameters
    ]
    weights = [weight for weight in weights if weight.stages()]
    if not weights:
        raise ModeError(
            "no weight is left to pack: those of these layers are packed already, or their quantizers are off"
        )
    return weights


def check_weights(model: nn.Module, weights: Iterable[DenseWeight], exporter: Exporter | None) -> None:
    """Refuse weights that cannot be packed, or not in the numbers of an exporter's dialect.

    Raises:
        UnsupportedError: a weight is tied to another module's, has too many formats in turn, a format that the
            dialect does not store, or no dims; all are named with the reason.
    """
    sharing, is_finalized = sharing_names(model), finalized_for(model) is not None
    problems = []
    for weight in weights:
        formats = " then ".join(str(stage.spec) for stage in weight.stages())
        if weight.name in sharing:
            problems.append(f"{weight.name} is tied to {listed(sharing[weight.name])}")
        elif len(weight.stages()) > MOST_FORMATS:
            problems.append(f"{weight.name} has {len(weight.stages())} formats in turn ({formats})")
        elif weight.layer.get_parameter(weight.slot.parameter).dim() == 0:
            problems.append(f"{weight.name} has no dim to pack codes along")
        elif exporter is not None and not is_finalized and not _is_stored(weight, exporter):
            problems.append(f"{weight.name} ({formats}) has no place in the dialect {exporter.name}")
    if problems:
        advice = "" if exporter is None else "; dialect='neutral' packs formats that no checkpoint stores"
        raise UnsupportedError(
            f"{len(problems)} weights cannot be packed: {listed(problems, 3)}. Leave these layers out by patterns"
            f"{advice}"
        )


def _is_stored(weight: DenseWeight, exporter: Exporter) -> bool:
    layer_format = format_of(weight.layer, weight.slot)
    is_other = isinstance(weight.layer, (QuantConvolution, QuantEmbedding))
    return layer_format is not None and not is_other and exporter.stores(layer_format)
