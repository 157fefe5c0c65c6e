"""What a number is: element types, granularities, specs, scales, rounding and packing, as pure functions."""

from octavo.core.formats.elements import ElementType, element_type
from octavo.core.formats.granularity import Granularity, PerBlock, PerChannel, PerTensor, PerToken, Stacked
from octavo.core.formats.quantization import (
    Quantized,
    compute_amax,
    dequantize,
    fake_quantize,
    in_range,
    quantize,
)
from octavo.core.formats.scale_gradients import state_gradients
from octavo.core.formats.spec import QuantSpec, chain_key, parse_chain, unstacked_chain

__all__ = [
    "ElementType",
    "Granularity",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "PerToken",
    "QuantSpec",
    "Quantized",
    "Stacked",
    "chain_key",
    "compute_amax",
    "dequantize",
    "element_type",
    "fake_quantize",
    "in_range",
    "parse_chain",
    "quantize",
    "state_gradients",
    "unstacked_chain",
]
