"""Swapping a layer's class for its quantized class, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import nn

from octavo.core.errors import ModeError
from octavo.core.modules.base import QuantModule
from octavo.core.modules.wrappers import (
    check_instance_forward,
    rebind_instance_forward,
    split_wrapper,
    wrapped_class,
)
from octavo.core.quantizers import Quantizer, TensorQuantizer

_ORIGINAL = "_octavo_original_class"
_QUANTIZED = "_octavo_quantized_class"
_HIDES = "which would hide a quantized class. Quantize before whatever installed it, or exclude the layer"
_STAYS = "which may need its quantizers. Remove it before unquantizing"


def swap(
    name: str, layer: nn.Module, quantized: type[QuantModule], quantizers: Mapping[str, Quantizer]
) -> None:
    """Make `layer` a `quantized` layer, in place, with these quantizers as submodules.

    Parameters, buffers, hooks, attributes and the wrapper class of FSDP2 stay.

    Args:
        name: The layer's name in its model, for messages.
        layer: The layer.
        quantized: Its quantized class, from `quantized_class` or `combined_class`.
        quantizers: One for each of `quantized.quantizer_names`; those `on_demand` may be missing.

    Raises:
        ModeError: the layer is quantized already, or has something of its own under a quantizer's name.
        UnsupportedError: the instance has a forward of its own that hides the class (see `wrappers`).
    """
    if isinstance(layer, QuantModule):
        raise ModeError(f"{name} is a {type(layer).__name__} already; unquantize it first")
    taken = [quantizer_name for quantizer_name in quantized.quantizer_names if hasattr(layer, quantizer_name)]
    if taken:
        raise ModeError(
            f"{name}: this {type(layer).__name__} has {', '.join(taken)} of its own, where its quantizers would go; "
            "rename it, or exclude the layer"
        )
    original = type(layer)
    wrapper, _ = split_wrapper(original)
    new_class = quantized if wrapper is None else wrapped_class(wrapper, quantized)
    check_instance_forward(name, layer, new_class, _HIDES)
    # Before the change, so that an interrupted swap can be undone.
    layer.__dict__[_QUANTIZED], layer.__dict__[_ORIGINAL] = quantized, original
    try:
        layer.__class__ = new_class
    except TypeError:  # classes whose instances are laid out in another way
        del layer.__dict__[_ORIGINAL], layer.__dict__[_QUANTIZED]
        raise
    rebind_instance_forward(layer, original, new_class)
    for quantizer_name in quantized.quantizer_names:
        if quantizer_name in quantizers or quantizer_name not in quantized.on_demand:
            layer.add_module(quantizer_name, quantizers[quantizer_name])


def unswap(name: str, layer: nn.Module) -> None:
    """Undo `swap`, also one that was interrupted: the layer gets back its very class and loses its quantizers.

    A layer that FSDP2 wrapped after the swap stays wrapped, around its original class.

    Raises:
        UnsupportedError: the instance got a forward of its own since; nothing was changed.
        ModeError: its class was changed since (by `torch.nn.utils.parametrize`, say); nothing was changed.
    """
    check_unswap(name, layer)
    original = _class_to_return_to(layer)
    if isinstance(layer, QuantModule):
        for quantizer_name in layer.quantizer_names:
            layer._modules.pop(quantizer_name, None)  # an interrupted swap has not added all of them
        for attribute in layer.own_attributes:
            layer.__dict__.pop(attribute, None)
    rebind_instance_forward(layer, type(layer), original)
    layer.__class__ = original
    del layer.__dict__[_ORIGINAL], layer.__dict__[_QUANTIZED]


def check_unswap(name: str, layer: nn.Module) -> None:
    """Raise what `unswap` would raise, without changing anything."""
    _, current = split_wrapper(type(layer))
    if isinstance(layer, QuantModule) and current is not layer.__dict__[_QUANTIZED]:
        raise ModeError(
            f"{name}: its class was changed from {layer.__dict__[_QUANTIZED].__name__} to {current.__name__} since it "
            "was quantized; undo that before unquantizing (torch.nn.utils.parametrize.remove_parametrizations, say)"
        )
    check_instance_forward(name, layer, _class_to_return_to(layer), _STAYS)


def _class_to_return_to(layer: nn.Module) -> type[nn.Module]:
    original: type[nn.Module] = layer.__dict__[_ORIGINAL]
    wrapper, _ = split_wrapper(type(layer))
    if wrapper is not None and split_wrapper(original)[0] is None:
        return wrapped_class(wrapper, original)
    return original


def swapped_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every layer that `swap` changed or began to change, with its name."""
    for name, module in model.named_modules():
        if _ORIGINAL in module.__dict__:
            yield name, module


def original_class(layer: QuantModule) -> type[nn.Module]:
    """Return the class that `layer` had before the swap."""
    return cast("type[nn.Module]", layer.__dict__[_ORIGINAL])


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantModule]]:
    """Yield every quantized layer of `model` with its name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            yield name, module


def tensor_quantizers(model: nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """Yield every `TensorQuantizer` of `model` with its name."""
    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer):
            yield name, module
