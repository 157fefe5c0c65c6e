"""The operators of Octavo (`torch.ops.octavo.*`): schemas, reference, meta functions and gradients."""

from octavo.core.ops import gradients, meta, packed_gradients, reference, schema  # noqa: F401  (importing registers them)
from octavo.core.ops.calls import (
    NOTHING,
    amax,
    dequantize,
    fake_quantize,
    fake_quantized_linear,
    operand,
    packed_expert_linear,
    packed_linear,
    quantize,
    rotated_fake_quantize,
    squared_error,
)

__all__ = [
    "NOTHING",
    "amax",
    "dequantize",
    "fake_quantize",
    "fake_quantized_linear",
    "operand",
    "packed_expert_linear",
    "packed_linear",
    "quantize",
    "rotated_fake_quantize",
    "squared_error",
]
