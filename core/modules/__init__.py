"""Quantized layer classes, their registry, and the swap of a layer's class."""

from octavo.core.modules.attention import QuantAttention
from octavo.core.modules.base import QuantModule
from octavo.core.modules.registry import (
    class_key,
    combined_class,
    quantized_class,
    register,
    registered_base,
    unregister,
)
from octavo.core.modules.swap import original_class, quantized_layers, swap, tensor_quantizers, unswap

__all__ = [
    "QuantAttention",
    "QuantModule",
    "class_key",
    "combined_class",
    "original_class",
    "quantized_class",
    "quantized_layers",
    "register",
    "registered_base",
    "swap",
    "tensor_quantizers",
    "unregister",
    "unswap",
]
