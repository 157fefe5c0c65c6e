"""Quantized layer classes, their registry, and the swap of a layer's class."""

from octavo.core.modules.attention import QuantAttention
from octavo.core.modules.base import QuantModule, WeightSlot
from octavo.core.modules.convolution import QuantConvolution
from octavo.core.modules.embedding import QuantEmbedding
from octavo.core.modules.experts import QuantExperts
from octavo.core.modules.fused import fused_layers
from octavo.core.modules.linear import quantized_linear
from octavo.core.modules.packed_layer import (
    check_not_packed,
    dense_names,
    hold_dense,
    hold_packed,
    is_transposed,
    packed_form,
    packed_layers,
    packed_slots,
)
from octavo.core.modules.packed_parameter import PackedParameter
from octavo.core.modules.registry import (
    class_key,
    combined_class,
    quantized_class,
    register,
    registered_base,
    unregister,
)
from octavo.core.modules.swap import (
    check_unswap,
    original_class,
    quantized_layers,
    swap,
    swapped_layers,
    tensor_quantizers,
    unswap,
)

__all__ = [
    "PackedParameter",
    "QuantAttention",
    "QuantConvolution",
    "QuantEmbedding",
    "QuantExperts",
    "QuantModule",
    "WeightSlot",
    "check_not_packed",
    "check_unswap",
    "class_key",
    "combined_class",
    "dense_names",
    "fused_layers",
    "hold_dense",
    "hold_packed",
    "is_transposed",
    "original_class",
    "packed_form",
    "packed_layers",
    "packed_slots",
    "quantized_class",
    "quantized_layers",
    "quantized_linear",
    "register",
    "registered_base",
    "swap",
    "swapped_layers",
    "tensor_quantizers",
    "unregister",
    "unswap",
]
