"""Finalizing: between calibration and packing, one recorded, reversible step to a dialect's numbers.

It turns off quantizers that the dialect has no place for, folds smoothing into norms where the dialect does, changes
formats (how quotients round), shares scales among layers with a common input, and turns activation maxima into what a
reader recovers from the stored scales. What is packed afterwards is bit for bit what the finalized model computes with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from octavo.core.calibration.differences import Numbers, differences
from octavo.core.calibration.finalized import (
    FINALIZATION,
    LastingFinalization,
    check_not_finalized,
    finalized_for,
    forget_finalization,
    lasting_finalization,
)
from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.calibration.learned_scales import check_scales_fixed
from octavo.core.calibration.originals import Originals
from octavo.core.calibration.smoothing_fold import fold_smoothing, format_of
from octavo.core.errors import ConfigError, ModeError
from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.model.exporter import Dialect, GroupingDialect, InputDialect
from octavo.core.model.targets import check_target
from octavo.core.modes.record import last_record
from octavo.core.modules import (
    QuantExperts,
    QuantModule,
    check_not_packed,
    quantized_layers,
    tensor_quantizers,
)
from octavo.core.plugins import plugins
from octavo.core.quantizers import Rotation, TensorQuantizer

_FACTORS = ("pre_quant_scale", "low_rank_down", "low_rank_up", "bias_value")


@dataclass(frozen=True)
class _Before:
    """One quantizer as it was."""

    quantizer: TensorQuantizer
    spec: QuantSpec | None
    state: dict[str, Tensor]
    enabled: bool
    rotation: Rotation | None
    factors: dict[str, Tensor | None]

    @classmethod
    def of(cls, quantizer: TensorQuantizer) -> _Before:
        state = {name: tensor.clone() for name, tensor in quantizer.named_state().items()}
        return cls(
            quantizer,
            quantizer.spec,
            state if _has_state(quantizer) else {},
            quantizer.enabled,
            quantizer.rotation,
            {name: getattr(quantizer, name) for name in _FACTORS},
        )

    def restore(self) -> None:
        self.quantizer.enabled, self.quantizer.rotation = self.enabled, self.rotation
        for name, tensor in self.factors.items():
            setattr(self.quantizer, name, tensor)
        if self.spec is not None:
            self.quantizer.respecify(self.spec)
        if self.state:
            self.quantizer.set_state(**self.state)


@dataclass(frozen=True)
class _Finalization:
    """What was done to a model, for which dialect.

    Attributes:
        dialect: Its name.
        quantizers: All of them, as they were.
        parameters: The values of weights and norms that smoothing was folded into.
        differences: How that differs from the dialect without a target.
        folded: Layers whose `pre_quant_scale` is folded.
        notes: Why others are not.
    """

    dialect: str
    quantizers: list[_Before]
    parameters: Originals
    differences: tuple[str, ...] = ()
    folded: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def undo(self) -> None:
        """Put every quantizer and parameter back."""
        for before in self.quantizers:
            before.restore()
        self.parameters.restore()


@torch.no_grad()
def finalize(model: nn.Module, dialect: Dialect | str, target: str | None = None) -> tuple[str, ...]:
    """Change the model to the numbers of `dialect`; `unfinalize` puts it back, bit for bit.

    Quantizers change, and where smoothing is folded the weights of these layers and of norms; a copy of these is kept.

    Args:
        model: A quantized model.
        dialect: The dialect, or the name of the exporter that writes it (`unified_hf`).
        target: Engine that will serve the checkpoint: the numbers are then those that it computes with, such as
            one scale for q, k and v where it keeps one. None: those of the peer's bytes.

    Returns:
        A sentence for each quantizer whose numbers the target changes; none without a target.

    Raises:
        ModeError: the model is not quantized, is finalized already, its weights are folded or packed, or its scales are
            being learned.
        PluginError: no exporter has that name.
        ConfigError: the target is unknown, or given with a dialect that is not an exporter's name.
    """
    dialect, peer = _dialects(dialect, target)
    record = last_record(model, "quantize")
    if record is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    check_not_folded(model, "finalize it")
    check_not_packed(
        model, "finalize them for a dialect now (octavo.compress(model, dialect=…) does before packing)"
    )
    check_scales_fixed(model, "finalizing")
    if (other := finalized_for(model)) is not None:
        raise ModeError(f"the model is finalized for {other} already; call octavo.unfinalize(model) first")
    quantizers = dict(tensor_quantizers(model))
    before = [_Before.of(quantizer) for quantizer in quantizers.values()]
    undoing = _Finalization(dialect.name, before, Originals())
    found: tuple[str, ...] = ()
    try:
        if peer is not None:
            _apply(model, peer, record.state["same_input"], undoing.parameters)
            peers = {name: Numbers.of(quantizer) for name, quantizer in quantizers.items()}
            undoing.undo()
        folded, notes = _apply(model, dialect, record.state["same_input"], undoing.parameters)
        if peer is not None:
            ours = {name: Numbers.of(quantizer) for name, quantizer in quantizers.items()}
            found = tuple(differences(peers, ours))
        model.__dict__[FINALIZATION] = replace(undoing, differences=found, folded=folded, notes=notes)
    except BaseException:
        undoing.undo()
        forget_finalization(model)
        raise
    return found


def unfinalize(model: nn.Module) -> None:
    """Undo `finalize`.

    Raises:
        ModeError: the model is not finalized, or its weights were packed since.
    """
    if finalized_for(model) is None:
        raise ModeError("the model is not finalized")
    if lasting_finalization(model) is not None:
        check_not_finalized(model, "unfinalizing")
    model.__dict__[FINALIZATION].undo()
    forget_finalization(model)


def target_differences(model: nn.Module) -> tuple[str, ...]:
    """Return what `finalize` returned for this model; nothing when it is not finalized."""
    record: _Finalization | LastingFinalization | None = model.__dict__.get(FINALIZATION)
    return () if record is None else record.differences


def folded_layers(model: nn.Module) -> frozenset[str]:
    """Return the layers whose `pre_quant_scale` finalizing has folded; none when the model is not finalized."""
    record: _Finalization | LastingFinalization | None = model.__dict__.get(FINALIZATION)
    return frozenset() if record is None else record.folded


def finalization_notes(model: nn.Module) -> tuple[str, ...]:
    """Return why finalizing left some `pre_quant_scale` unfolded that the dialect would fold."""
    record: _Finalization | LastingFinalization | None = model.__dict__.get(FINALIZATION)
    return () if record is None else record.notes


@contextmanager
def finalized(model: nn.Module, dialect: Dialect | str, target: str | None = None) -> Iterator[None]:
    """Finalize the model for the time of a context."""
    finalize(model, dialect, target)
    try:
        yield
    finally:
        unfinalize(model)


def _dialects(dialect: Dialect | str, target: str | None) -> tuple[Dialect, Dialect | None]:
    """Return the dialect to apply and, with a target, the one without it."""
    if isinstance(dialect, str):
        exporter = plugins().exporter(dialect)
        if target is None:
            return exporter.dialect, None
        check_target(target)
        return exporter.dialect_for(target), exporter.dialect
    if target is not None:
        raise ConfigError(
            f"target={target!r} needs the name of an exporter, found the dialect {dialect.name}"
        )
    return dialect, None


def _apply(
    model: nn.Module, dialect: Dialect, groups: Iterable[Iterable[str]], originals: Originals
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Apply a dialect; return what `fold_smoothing` does."""
    _turn_off(model, dialect)
    if isinstance(dialect, GroupingDialect):
        groups = dialect.groups(model, groups)
    folded = fold_smoothing(model, dialect, groups, originals)
    _respecify_weights(model, dialect)
    if isinstance(dialect, InputDialect):
        _respecify_inputs(model, dialect)
    _share_scales(model, dialect, groups)
    _share_in_stacks(model, dialect)
    _fit_weight_scales(model, dialect)
    _recover_activations(model, dialect)
    return folded


def _turn_off(model: nn.Module, dialect: Dialect) -> None:
    for _, layer in quantized_layers(model):
        quantizers = layer.quantizers()
        for name in [name for name in quantizers if not dialect.has_place_for(layer, name)]:
            for stage in quantizers[name].stages():
                stage.enabled, stage.rotation = False, None


def _respecify_weights(model: nn.Module, dialect: Dialect) -> None:
    for _, layer in quantized_layers(model):
        for slot in layer.weight_slots():
            layer_format = format_of(layer, slot)
            if layer_format is not None:
                first = _active_stages(layer, slot.quantizer)[0]
                calibrated = first.spec if _is_in_one_tensor(layer) else layer_format.weight
                then = () if layer_format.then is None else (layer_format.then,)
                spec = dialect.weight_spec(calibrated or layer_format.weight, layer_format.inputs, *then)
                first.respecify(spec.stacked() if slot.is_stacked and not spec.is_stacked else spec)


def _respecify_inputs(model: nn.Module, dialect: InputDialect) -> None:
    for _, layer in quantized_layers(model):
        for name in {slot.inputs for slot in layer.weight_slots()}:
            stage = _stage(layer, name)
            if stage is not None and stage.spec is not None:
                stage.respecify(dialect.input_spec(stage.spec))


def _share_scales(model: nn.Module, dialect: Dialect, groups: Iterable[Iterable[str]]) -> None:
    layers = dict(quantized_layers(model))
    for group in groups:
        _share(dialect, [layers[name] for name in group if name in layers])


def _share_in_stacks(model: nn.Module, dialect: Dialect) -> None:
    """Share scales among the weights that a checkpoint holds in one tensor."""
    for layer in [layer for _, layer in quantized_layers(model) if _is_in_one_tensor(layer)]:
        for name, weight in layer.quantized_weights().items():
            quantizer = _stage(layer, name)
            if quantizer is not None and quantizer.spec is not None and _has_state(quantizer):
                state = quantizer.named_state()
                for shared in dialect.shared_state([quantizer.spec], [tuple(weight.shape)]):
                    state[shared] = state[shared].amax(0, keepdim=True).expand_as(state[shared])
                quantizer.set_state(**state)


def _fit_weight_scales(model: nn.Module, dialect: Dialect) -> None:
    for _, layer in quantized_layers(model):
        for name, weight in layer.quantized_weights().items():
            quantizer = _stage(layer, name)
            if quantizer is not None and quantizer.spec is not None and _has_state(quantizer):
                spec, state = quantizer.spec.unstacked(), quantizer.named_state()
                quantizer.set_state(**dialect.weight_state(spec, state, weight.dtype))


def _recover_activations(model: nn.Module, dialect: Dialect) -> None:
    for _, layer in quantized_layers(model):
        for name in layer.quantizers().keys() - layer.quantized_weights().keys():
            quantizer = _stage(layer, name)
            if quantizer is not None and quantizer.spec is not None and _has_state(quantizer):
                state = dialect.activation_state(name, quantizer.spec, quantizer.named_state())
                quantizer.set_state(**state)


def _share(dialect: Dialect, layers: Sequence[QuantModule]) -> None:
    """Share scales among layers that read one tensor, where their formats agree."""
    for kind in ("weight_quantizer", "input_quantizer"):
        chains = [chain for layer in layers if (chain := _active_stages(layer, kind))]
        if len(chains) < 2 or len(chains) != len(layers):
            continue
        if len({tuple(quantizer.spec for quantizer in chain) for chain in chains}) > 1:
            continue
        quantizers = [chain[-1] for chain in chains]
        specs = [quantizer.spec for quantizer in quantizers if quantizer.spec is not None]
        names: Sequence[str] = specs[0].state
        if len(chains[0]) > 1:  # of formats in turn, the last one's scale, which engines keep one of
            names = names if isinstance(specs[0].granularity, PerTensor) else ()
        elif kind == "weight_quantizer":
            shapes = [tuple(layer.quantized_weights()[kind].shape) for layer in layers]
            names = dialect.shared_state(specs, shapes)
        if not names or not all(map(_has_state, quantizers)):
            continue
        shared = {n: torch.stack([getattr(q, n) for q in quantizers]).amax(0) for n in names}
        for quantizer in quantizers:
            quantizer.set_state(**{**quantizer.named_state(), **shared})


def _is_in_one_tensor(layer: QuantModule) -> bool:
    return isinstance(layer, QuantExperts) and layer.is_in_one_tensor(layer)


def _has_state(quantizer: TensorQuantizer) -> bool:
    return bool(quantizer.named_state()) and not quantizer.needs_calibration


def _active_stages(layer: QuantModule, name: str) -> list[TensorQuantizer]:
    quantizer = layer.quantizers().get(name)
    stages = [] if quantizer is None else quantizer.stages()
    return [stage for stage in stages if stage.enabled and stage.spec is not None]


def _stage(layer: QuantModule, name: str) -> TensorQuantizer | None:
    """Return the layer's quantizer if it is on and a single one."""
    quantizer = layer.quantizers().get(name)
    return quantizer if isinstance(quantizer, TensorQuantizer) and quantizer.enabled else None
