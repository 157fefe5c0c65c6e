"""Quantized attention, through transformers' own attention interface.

An attention layer asks its config for the name of an implementation, and the interface for the function of that
name. A routed layer gets a view of its config that answers with a name of ours; the model's own config, its masks
and all other layers stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from torch import nn

from octavo.adapters.huggingface.probabilities import (
    QuantizedSoftmax,
    additive_mask,
    check_can_be_eager,
)
from octavo.core.errors import UnsupportedError
from octavo.core.modules import QuantAttention

ROUTED = "octavo"
_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_IMPLEMENTATION = "_attn_implementation"


def interface_layers(model: nn.Module) -> Mapping[str, nn.Module]:
    """Return the layers whose queries, keys and values can be quantized, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if _uses_interface(layer) and not _asks_by_name(layer)
    }


def left_out_layers(model: nn.Module) -> Mapping[str, str]:
    """Return {name: reason} of the attention layers whose queries, keys and values cannot be quantized."""
    reasons = {}
    for name, layer in model.named_modules():
        if _uses_interface(layer):
            reason = _asks_by_name(layer)
        elif _is_attention(layer) and not any(map(_is_attention, list(layer.modules())[1:])):
            reason = f"{type(layer).__name__} does not call transformers' attention interface"
        else:
            reason = ""
        if reason:
            reasons[name] = reason
    return reasons


def route_attention(model: nn.Module) -> None:
    """Make layers that have quantizers for it use an attention function that quantizes first.

    Raises:
        UnsupportedError: a layer has quantizers that its attention would not run.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ROUTED, quantized_attention)
    left_out = left_out_layers(model)
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantAttention) or isinstance(layer.config, _RoutedConfig):
            continue
        if name in left_out:
            raise UnsupportedError(f"{name}: queries, keys and values cannot be quantized: {left_out[name]}")
        config = _RoutedConfig(layer)
        if layer.has_probabilities:
            check_can_be_eager(name, config.implementation, config.eager)
        layer.config = config  # type: ignore[assignment]


def unroute_attention(model: nn.Module) -> None:
    """Give routed layers their own configs back."""
    for layer in model.modules():
        config = getattr(layer, "config", None)
        if isinstance(config, _RoutedConfig):
            layer.config = config.own


def quantized_attention(
    module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any
) -> Any:
    """Run the implementation that the model of a routed layer asks for, on quantized tensors, and quantize its output.

    Only eager attention has a softmax output: where that is quantized, the model's own eager function runs, with the
    mask in its form.

    Raises:
        UnsupportedError: the softmax output is quantized, and the model asks for an implementation whose masks are of
            a form of its own.
    """
    layer = cast(QuantAttention, module)
    config: Any = module.config
    query, key, value = layer.quantize_qkv(query, key, value)
    if layer.has_probabilities:
        check_can_be_eager(type(module).__name__, config.implementation, config.eager)
        if config.implementation == "sdpa":
            mask = additive_mask(module, query, key, mask, options.get("is_causal"))
        with QuantizedSoftmax(layer.quantize_probabilities):
            output, weights = config.eager(module, query, key, value, mask, **options)
    else:
        output, weights = config.inner_function()(module, query, key, value, mask, **options)
    return layer.quantize_output(output), weights


class _RoutedConfig:
    """The config of a layer, with another attention implementation; follows every change of the config."""

    def __init__(self, layer: nn.Module) -> None:
        forward = inspect.unwrap(type(layer).forward)
        eager = next(
            (name for name in forward.__code__.co_names if name.endswith("eager_attention_forward")), ""
        )
        self.own: Any = layer.config
        self._interface: Any = forward.__globals__[_INTERFACE]
        self.eager: Callable[..., Any] | None = forward.__globals__.get(eager)

    _attn_implementation = ROUTED

    @property
    def implementation(self) -> str | None:
        """The name of the attention function that the model asks for."""
        return self.own._attn_implementation  # type: ignore[no-any-return]

    def inner_function(self) -> Callable[..., Any]:
        """Return the attention function that the layer would call if it were not routed."""
        return self._interface.get_interface(self.implementation, self.eager)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name == "own" or name.startswith("__"):  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.own, name)


def _is_attention(layer: nn.Module) -> bool:
    return isinstance(layer, QuantAttention) or type(layer).__name__.endswith("Attention")


def _uses_interface(layer: nn.Module) -> bool:
    forward = inspect.unwrap(type(layer).forward)
    has_interface = _INTERFACE in getattr(forward, "__globals__", ())
    return has_interface and {_INTERFACE, _IMPLEMENTATION} <= _names(forward) and hasattr(layer, "config")


def _asks_by_name(layer: nn.Module) -> str:
    """Return why another name for its implementation would change what a layer computes, or an empty string."""
    forward = inspect.unwrap(type(layer).forward)
    kind, name = type(layer).__name__, layer.config._attn_implementation  # type: ignore[union-attr]
    if name in _constants(forward.__code__.co_consts):
        return (
            f"{kind} asks for the attention implementation {name!r} by name; load the model with another one"
        )
    function = forward.__globals__[_INTERFACE].get(name)
    if _IMPLEMENTATION in _names(function):
        return f"the attention implementation {name!r} asks for its own name; load the model with 'sdpa' or 'eager'"
    return ""


def _names(function: object) -> frozenset[str]:
    """Return the globals and attributes that a function's code uses; nothing for what is no Python function."""
    code = getattr(function, "__code__", None)
    return frozenset(code.co_names if code is not None else ())


def _constants(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, (tuple, frozenset)):
            yield from _constants(value)
        else:
            yield value
