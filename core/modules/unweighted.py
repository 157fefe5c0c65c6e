"""Layers without a weight to quantize (norms, poolings, LeakyReLU): their input and output."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from octavo.core.modules.base import QuantModule
from octavo.core.quantizers import Quantizer


class QuantUnweighted(QuantModule):
    """`output_quantizer(layer(input_quantizer(input)))`; a mixin for layers with one input."""

    quantizer_names = ("input_quantizer", "output_quantizer")
    input_quantizer: Quantizer
    output_quantizer: Quantizer

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return (0, *normalized_shape) for `nn.LayerNorm`; the shapes of other layers vary."""
        return (0, *layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else None

    def forward(self, input: Tensor) -> Any:
        """Return the layer's output, or for a pooling that returns indices too, (output, indices)."""
        output = super().forward(self.input_quantizer(input))
        if isinstance(output, tuple):
            return (self.output_quantizer(output[0]), *output[1:])
        return self.output_quantizer(output)
