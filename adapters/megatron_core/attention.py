"""Core attention on quantized queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from octavo.core.errors import UnsupportedError, listed
from octavo.core.modules import QuantAttention, quantized_layers

_HOOK = "_octavo_attention_hook"


def attention_layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the core attention layers of Megatron-core's own implementation, by name."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, DotProductAttention)}


def route_attention(model: nn.Module) -> None:
    """Let quantized core attention layers round what they are called with.

    Raises:
        UnsupportedError: a layer has a quantizer inside the attention, which no hook reaches.
    """
    layers = [(n, layer) for n, layer in quantized_layers(model) if isinstance(layer, QuantAttention)]
    inside = [f"{n}.{name}" for n, layer in layers for name in layer.quantizers() if name in layer.on_demand]
    if inside:
        raise UnsupportedError(
            f"{len(inside)} quantizers are inside Megatron-core's attention, where only queries, keys and values can "
            f"be quantized: {listed(inside, 2)}; leave them out of the config"
        )
    for _, layer in layers:
        if _HOOK not in layer.__dict__:
            layer.__dict__[_HOOK] = layer.register_forward_pre_hook(_quantize, with_kwargs=True)


def unroute_attention(model: nn.Module) -> None:
    """Undo `route_attention`."""
    for layer in model.modules():
        if _HOOK in layer.__dict__:
            layer.__dict__.pop(_HOOK).remove()


def _quantize(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Quantize queries, keys and values, [tokens, batch, heads, head_dim] each, the first arguments of a call."""
    if not isinstance(layer, QuantAttention) or len(args) < 3:
        return None
    query, key, value = layer.quantize_qkv(*(tensor.permute(1, 2, 0, 3) for tensor in args[:3]))
    return (_back(query), _back(key), _back(value), *args[3:]), kwargs


def _back(x: Tensor) -> Tensor:
    return x.permute(2, 0, 1, 3)
