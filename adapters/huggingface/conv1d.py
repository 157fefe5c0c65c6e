"""Quantized `transformers.pytorch_utils.Conv1D`: a linear layer whose weight is stored [in, out]."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from octavo.core.modules import PackedParameter, QuantModule, quantized_linear
from octavo.core.quantizers import Quantizer


class QuantConv1D(QuantModule):
    """Mixin: `output_quantizer(linear(input_quantizer(x), weight_quantizer(weightᵀ), bias))`.

    Its quantizers see the weight as [out, in], like that of every linear layer.
    """

    quantizer_names = ("input_quantizer", "weight_quantizer", "output_quantizer")
    weight_is_transposed = True
    weight: Tensor
    bias: Tensor
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    output_quantizer: Quantizer

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` sees, with 0 for dims that vary."""
        conv = cast(Any, layer)
        shapes = {
            "input_quantizer": (0, conv.nx),
            "weight_quantizer": (conv.nf, conv.nx),
            "output_quantizer": (0, conv.nf),
        }
        return shapes[quantizer]

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the weight as [out, in], a view, under the name of its quantizer."""
        return {"weight_quantizer": self.weight.t()}

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output [..., out] for an input [..., in]."""
        held = self.held("weight")
        weight = held if isinstance(held, PackedParameter) else held.t()
        output = quantized_linear(x, self.input_quantizer, weight, self.weight_quantizer, self.bias)
        return cast(Tensor, self.output_quantizer(output))
