"""Finalizing: between calibration and packing, one recorded, reversible step to a dialect's numbers.

It turns off quantizers that the dialect has no place for, changes formats (how quotients round), shares scales among
layers with a common input, and turns activation maxima into what a reader recovers from the stored scales. What is
packed afterwards is bit for bit what the finalized model computes with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.core.errors import ModeError
from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import Dialect
from octavo.core.modes.record import last_record
from octavo.core.modules import QuantModule, quantized_layers, tensor_quantizers
from octavo.core.plugins import plugins
from octavo.core.quantizers import TensorQuantizer

_FINALIZATION = "_octavo_finalization"


@dataclass(frozen=True)
class _Before:
    """One quantizer as it was."""

    quantizer: TensorQuantizer
    spec: QuantSpec
    state: dict[str, Tensor]
    enabled: bool

    @classmethod
    def of(cls, quantizer: TensorQuantizer) -> _Before:
        assert quantizer.spec is not None  # noqa: S101 (the caller leaves the others out)
        state = {name: tensor.clone() for name, tensor in quantizer.named_state().items()}
        return cls(quantizer, quantizer.spec, state if _has_state(quantizer) else {}, quantizer.enabled)


@dataclass(frozen=True)
class _Finalization:
    """What was done to a model, and for which dialect."""

    dialect: str
    quantizers: list[_Before]

    def undo(self) -> None:
        """Put every quantizer back."""
        for before in self.quantizers:
            before.quantizer.enabled = before.enabled
            before.quantizer.respecify(before.spec)
            if before.state:
                before.quantizer.set_state(**before.state)


@torch.no_grad()
def finalize(model: nn.Module, dialect: Dialect | str) -> None:
    """Change the model's quantizers to the numbers of `dialect`; `unfinalize` puts them back.

    Args:
        model: A quantized model.
        dialect: The dialect, or the name of the exporter that writes it (`unified_hf`).

    Raises:
        ModeError: the model is not quantized, or is finalized already.
        PluginError: no exporter has that name.
    """
    if isinstance(dialect, str):
        dialect = plugins().exporter(dialect).dialect
    record = last_record(model, "quantize")
    if record is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    if (other := finalized_for(model)) is not None:
        raise ModeError(f"the model is finalized for {other} already; call octavo.unfinalize(model) first")
    quantizers = [quantizer for _, quantizer in tensor_quantizers(model) if quantizer.spec is not None]
    finalization = _Finalization(dialect.name, [_Before.of(quantizer) for quantizer in quantizers])
    try:
        model.__dict__[_FINALIZATION] = finalization
        _turn_off(model, dialect)
        _respecify_weights(model, dialect)
        _share_scales(model, dialect, record.state["same_input"])
        _recover_activations(model, dialect)
    except BaseException:
        finalization.undo()
        forget_finalization(model)
        raise


def unfinalize(model: nn.Module) -> None:
    """Undo `finalize`.

    Raises:
        ModeError: the model is not finalized.
    """
    if finalized_for(model) is None:
        raise ModeError("the model is not finalized")
    model.__dict__[_FINALIZATION].undo()
    forget_finalization(model)


def finalized_for(model: nn.Module) -> str | None:
    """Return the name of the dialect that the model is finalized for, or None."""
    record: _Finalization | None = model.__dict__.get(_FINALIZATION)
    return None if record is None else record.dialect


def check_not_finalized(model: nn.Module, doing: str) -> None:
    """Refuse what cannot be done while formats and scales are a dialect's.

    Raises:
        ModeError: the model is finalized; `doing` is named.
    """
    if (dialect := finalized_for(model)) is not None:
        raise ModeError(
            f"the model is finalized for {dialect}; call octavo.unfinalize(model) before {doing} it"
        )


def forget_finalization(model: nn.Module) -> None:
    """Drop the record of a finalization that is undone, or whose quantizers are gone."""
    model.__dict__.pop(_FINALIZATION, None)


@contextmanager
def finalized(model: nn.Module, dialect: Dialect | str) -> Iterator[None]:
    """Finalize the model for the time of a context."""
    finalize(model, dialect)
    try:
        yield
    finally:
        unfinalize(model)


def _turn_off(model: nn.Module, dialect: Dialect) -> None:
    for _, layer in quantized_layers(model):
        for name, quantizer in layer.quantizers().items():
            if not dialect.has_place_for(layer, name):
                for stage in quantizer.stages():
                    stage.enabled = False


def _respecify_weights(model: nn.Module, dialect: Dialect) -> None:
    for _, layer in quantized_layers(model):
        weight, inputs = _stage(layer, "weight_quantizer"), _stage(layer, "input_quantizer")
        if weight is not None and weight.spec is not None:
            weight.respecify(dialect.weight_spec(weight.spec, inputs.spec if inputs is not None else None))


def _share_scales(model: nn.Module, dialect: Dialect, groups: Iterable[Iterable[str]]) -> None:
    layers = dict(quantized_layers(model))
    for group in groups:
        _share(dialect, [layers[name] for name in group if name in layers])


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
        quantizers = [stage for layer in layers if (stage := _stage(layer, kind)) is not None]
        specs = [quantizer.spec for quantizer in quantizers if quantizer.spec is not None]
        if len(specs) < 2 or len(specs) != len(layers) or len(set(specs)) > 1:
            continue
        names: Sequence[str] = specs[0].state
        if kind == "weight_quantizer":
            shapes = [tuple(layer.quantized_weights()[kind].shape) for layer in layers]
            names = dialect.shared_state(specs, shapes)
        if not names or not all(map(_has_state, quantizers)):
            continue
        shared = {n: torch.stack([getattr(q, n) for q in quantizers]).amax(0) for n in names}
        for quantizer in quantizers:
            quantizer.set_state(**{**quantizer.named_state(), **shared})


def _has_state(quantizer: TensorQuantizer) -> bool:
    return bool(quantizer.named_state()) and not quantizer.needs_calibration


def _stage(layer: QuantModule, name: str) -> TensorQuantizer | None:
    """Return the layer's quantizer if it is on and a single one."""
    quantizer = layer.quantizers().get(name)
    return quantizer if isinstance(quantizer, TensorQuantizer) and quantizer.enabled else None
