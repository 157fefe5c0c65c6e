"""Swapping a layer's class for its quantized class, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import nn

from octavo.core.errors import ModeError
from octavo.core.modules.base import QuantModule
from octavo.core.modules.wrappers import rebind_instance_forward, split_wrapper, wrapped_class
from octavo.core.quantizers import Quantizer, TensorQuantizer

_ORIGINAL = "_octavo_original_class"


def swap(
    name: str, layer: nn.Module, quantized: type[QuantModule], quantizers: Mapping[str, Quantizer]
) -> None:
    """Make `layer` a `quantized` layer, in place, with these quantizers as submodules.

    Parameters, buffers, hooks, attributes and the wrapper class of FSDP2 stay.

    Args:
        name: The layer's name in its model, for messages.
        layer: The layer.
        quantized: Its quantized class, from `quantized_class` or `combined_class`.
        quantizers: One for each of `quantized.quantizer_names`.

    Raises:
        ModeError: the layer is quantized already.
        UnsupportedError: the instance has a forward of its own that hides the class (see `wrappers`).
    """
    if isinstance(layer, QuantModule):
        raise ModeError(f"{name} is a {type(layer).__name__} already; unquantize it first")
    original = type(layer)
    wrapper, _ = split_wrapper(original)
    new_class = quantized if wrapper is None else wrapped_class(wrapper, quantized)
    rebind_instance_forward(name, layer, new_class)
    layer.__class__ = new_class
    layer.__dict__[_ORIGINAL] = original
    for quantizer_name in quantized.quantizer_names:
        layer.add_module(quantizer_name, quantizers[quantizer_name])


def unswap(name: str, layer: QuantModule) -> None:
    """Undo `swap`: the layer gets back the very class it had, and its quantizers are dropped.

    A layer that FSDP2 wrapped after the swap stays wrapped, around its original class.
    """
    original = layer.__dict__[_ORIGINAL]
    wrapper, _ = split_wrapper(type(layer))
    if wrapper is not None and split_wrapper(original)[0] is None:
        original = wrapped_class(wrapper, original)
    rebind_instance_forward(name, layer, original)
    for quantizer_name in layer.quantizer_names:
        layer._modules.pop(quantizer_name, None)  # an interrupted swap has not added all of them
    del layer.__dict__[_ORIGINAL]
    layer.__class__ = original


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
