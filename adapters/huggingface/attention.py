"""Quantized queries, keys and values, through transformers' own attention interface."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from octavo.core.modules import QuantAttention

_PREFIX = "octavo_"
_INTERFACE = "ALL_ATTENTION_FUNCTIONS"


def interface_layers(model: nn.Module) -> Mapping[str, nn.Module]:
    """Return the layers whose forward looks its attention function up in the interface."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if _INTERFACE in getattr(inspect.unwrap(type(layer).forward), "__code__", _NO_CODE).co_names
    }


def route_attention(model: nn.Module) -> None:
    """Make the model use an attention function that quantizes first, if any layer has quantizers for it."""
    current: str = model.config._attn_implementation  # type: ignore[union-attr, assignment]
    if current.startswith(_PREFIX) or not any(isinstance(layer, QuantAttention) for layer in model.modules()):
        return
    model.set_attn_implementation(_registered(current))  # type: ignore[operator]


def unroute_attention(model: nn.Module) -> None:
    """Put the model's own attention function back."""
    current: str = model.config._attn_implementation  # type: ignore[union-attr, assignment]
    if current.startswith(_PREFIX):
        model.set_attn_implementation(current.removeprefix(_PREFIX))  # type: ignore[operator]


def _registered(inner: str) -> str:
    """Register, once, the function that quantizes and then runs the attention implementation `inner`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    name = _PREFIX + inner
    AttentionInterface.register(name, _quantized_attention(inner))
    if inner in ALL_MASK_ATTENTION_FUNCTIONS:
        # Without a mask function of its own name, padded batches would attend to their padding.
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    return name


def _quantized_attention(inner: str) -> Callable[..., Any]:
    def attention(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if isinstance(module, QuantAttention):
            query, key, value = module.quantize_qkv(query, key, value)
        return _inner_function(inner, module)(module, query, key, value, mask, **kwargs)

    return attention


def _inner_function(inner: str, module: nn.Module) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if inner == "eager":  # the eager function is each model file's own
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[inner]  # type: ignore[no-any-return]


class _NoCode:
    co_names: tuple[str, ...] = ()


_NO_CODE = _NoCode()
