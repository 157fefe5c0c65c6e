"""The operators of Octavo (`torch.ops.octavo.*`): schemas, reference, meta functions and gradients."""

from octavo.core.ops import gradients, meta, reference, schema  # noqa: F401  (importing registers them)
from octavo.core.ops.calls import amax, dequantize, fake_quantize, fake_quantized_linear, quantize

__all__ = ["amax", "dequantize", "fake_quantize", "fake_quantized_linear", "quantize"]
