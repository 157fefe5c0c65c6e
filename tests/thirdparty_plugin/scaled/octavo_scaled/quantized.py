"""The quantized class of the framework's layer."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

import octavo
from octavo_scaled.layers import ScaledLinear


class QuantScaledLinear(octavo.QuantModule, ScaledLinear):
    quantizer_names = ("input_quantizer", "weight_quantizer")

    @classmethod
    def quantizer_shape(cls, layer: ScaledLinear, quantizer: str) -> tuple[int, ...]:
        return tuple(layer.weight.shape) if quantizer == "weight_quantizer" else (0, layer.weight.shape[1])

    def quantized_weights(self) -> dict[str, Tensor]:
        return {"weight_quantizer": self.weight}

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.input_quantizer(x), self.weight_quantizer(self.weight)) * self.gain
