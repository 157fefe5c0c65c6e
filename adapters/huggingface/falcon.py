"""Falcon's linear layer, which multiplies and adds its bias in two steps. Imported when a model has one."""

from __future__ import annotations

from torch import Tensor
from transformers.models.falcon.modeling_falcon import (  # noqa: TID253 (the registry imports this file on use)
    FalconLinear,
)

from octavo.core.modules.linear import QuantLinear, quantized_linear


class QuantFalconLinear(QuantLinear, FalconLinear):  # type: ignore[misc]
    """`output_quantizer(linear(input_quantizer(input), weight_quantizer(weight)) + bias)`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output [..., out_features] for an input [..., in_features]."""
        weight = self.held("weight")
        output = quantized_linear(input, self.input_quantizer, weight, self.weight_quantizer, None)
        result: Tensor = self.output_quantizer(output if self.bias is None else output + self.bias)
        return result
