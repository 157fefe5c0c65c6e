"""Layers that hold weights packed: how they come to, and how they get dense parameters back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from octavo.core.errors import ModeError
from octavo.core.modules.base import QuantModule, WeightSlot
from octavo.core.modules.experts import QuantExperts
from octavo.core.modules.packed_parameter import PackedParameter, packed_name
from octavo.core.modules.swap import quantized_layers
from octavo.core.modules.wrappers import split_wrapper, wrapped_class
from octavo.core.packed import PackedChain, PackedTensor, PackedView

_classes: dict[tuple[type[QuantModule], tuple[str, ...]], type[QuantModule]] = {}


def hold_packed(layer: QuantModule, slot: WeightSlot, weight: PackedParameter) -> None:
    """Put `weight` in the place of a parameter of `layer`; the parameter's name then shows a view of it.

    The name stays among the layer's parameters, without a value, so that its place is known.
    """
    layer.add_module(packed_name(slot.parameter), weight)
    _set_class(layer, (*layer.packed_parameters, slot.parameter))
    layer._parameters[slot.parameter] = None


def hold_dense(layer: QuantModule, slot: WeightSlot, parameter: nn.Parameter) -> None:
    """Undo `hold_packed`: give `layer` this parameter."""
    layer._parameters[slot.parameter] = parameter
    _set_class(layer, tuple(name for name in layer.packed_parameters if name != slot.parameter))
    layer._modules.pop(packed_name(slot.parameter), None)


def packed_layers(model: nn.Module) -> Iterator[tuple[str, QuantModule]]:
    """Yield every layer of `model` that holds a weight packed, with its name."""
    for name, layer in quantized_layers(model):
        if layer.packed_parameters:
            yield name, layer


def packed_slots(layer: QuantModule) -> Iterator[tuple[WeightSlot, PackedParameter]]:
    """Yield the packed weights of a layer."""
    for slot in layer.weight_slots():
        held = layer.held(slot.parameter) if slot.parameter in layer.packed_parameters else None
        if isinstance(held, PackedParameter):
            yield slot, held


def packed_form(layer: QuantModule, slot: WeightSlot) -> PackedTensor | PackedChain:
    """Return what a packed weight stands for: its codes, and the format that rounds their values once more."""
    weight = layer.held(slot.parameter)
    assert isinstance(weight, PackedParameter)  # noqa: S101 (asked for packed weights only)
    then = [stage for stage in layer.quantizers()[slot.quantizer].stages() if stage.is_active]
    if not then or then[0].spec is None:
        return weight.tensor()
    return PackedChain(weight.tensor(), then[0].spec, tuple(then[0].state_tensors()))


def is_transposed(layer: QuantModule, slot: WeightSlot) -> bool:
    """Whether the layer's parameter is [..., in, out]."""
    is_one = slot.is_stacked and isinstance(layer, QuantExperts) and layer.is_in_one_tensor(layer)
    return is_one or layer.weight_is_transposed


def check_not_packed(model: nn.Module, doing: str) -> None:
    """Refuse what needs the weights that were packed.

    Raises:
        ModeError: the model has packed weights; `doing` is named.
    """
    names = [name for name, _ in packed_layers(model)]
    if names:
        raise ModeError(
            f"{len(names)} layers hold packed weights (first {names[0]!r}): the original ones are gone, so one cannot "
            f"{doing}. octavo.decompress(model) makes the values of their codes dense weights; for the original ones, "
            "load the model again"
        )


@contextmanager
def dense_names(model: nn.Module) -> Iterator[None]:
    """Show packed weights, for the time of a context, as parameters without values (on the meta device).

    Whoever lists parameters then sees the names, shapes and dtypes of the dense model, in its order, and those of
    codes and scales beside them.
    """
    layers = [layer for _, layer in packed_layers(model)]
    try:
        for layer in layers:
            for slot, weight in packed_slots(layer):
                layer._parameters[slot.parameter] = weight.placeholder()
        yield
    finally:
        for layer in layers:
            layer._parameters.update(dict.fromkeys(layer.packed_parameters))


def _set_class(layer: QuantModule, parameters: Sequence[str]) -> None:
    """Give `layer` the class that holds these parameters packed; without any its quantized class."""
    wrapper, current = split_wrapper(type(layer))
    plain = current.__bases__[0] if layer.packed_parameters else current
    new = _packed_class(plain, tuple(parameters)) if parameters else plain
    layer.__class__ = new if wrapper is None else wrapped_class(wrapper, new)


def _packed_class(quantized: type[QuantModule], parameters: tuple[str, ...]) -> type[QuantModule]:
    """Return the one class of layers of class `quantized` that hold these parameters packed."""
    key = (quantized, parameters)
    if key not in _classes:
        slots = {slot.parameter: slot for slot in quantized.weight_slots()}
        views = {name: property(_view_of(slots[name])) for name in parameters}
        namespace = {"__module__": quantized.__module__, "packed_parameters": parameters, **views}
        _classes[key] = type(f"Packed{quantized.__name__}", (quantized,), namespace)
    return _classes[key]


def _view_of(slot: WeightSlot) -> Callable[[QuantModule], Tensor]:
    """Return the getter of a packed parameter: a view of the dense parameter's shape and dtype.

    Stacked weights are shown as [experts, out, in], whichever way the dense parameter is.
    """

    def view(layer: QuantModule) -> Tensor:
        return PackedView(
            packed_form(layer, slot),
            "transposed" if is_transposed(layer, slot) and not slot.is_stacked else "plain",
        )

    return view
