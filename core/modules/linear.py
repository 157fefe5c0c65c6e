"""Quantized nn.Linear."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from octavo.core import ops
from octavo.core.modules.base import QuantModule
from octavo.core.modules.packed_parameter import PackedParameter
from octavo.core.quantizers import Quantizer


class QuantLinear(QuantModule, nn.Linear):
    """`output_quantizer(linear(input_quantizer(input), weight_quantizer(weight), bias))`.

    The three steps inside are one operator, so that backward keeps the input and the weight and recomputes
    their quantized copies. A low-rank correction of the weight, if there is one, is computed beside it, not rounded.
    """

    quantizer_names = ("input_quantizer", "weight_quantizer", "output_quantizer")
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    output_quantizer: Quantizer

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` sees, with 0 for dims that vary."""
        linear = cast(nn.Linear, layer)
        shapes = {
            "input_quantizer": (0, linear.in_features),
            "weight_quantizer": (linear.out_features, linear.in_features),
            "output_quantizer": (0, linear.out_features),
        }
        return shapes[quantizer]

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the weight under the name of its quantizer."""
        return {"weight_quantizer": self.weight}

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output [..., out_features] for an input [..., in_features]."""
        # Found faster than as attributes: for every token.
        modules = cast(dict[str, Quantizer], self._modules)
        x_quantizer, weight_quantizer, output_quantizer = (modules[name] for name in self.quantizer_names)
        output = quantized_linear(input, x_quantizer, self.held("weight"), weight_quantizer, self.bias)
        if not output_quantizer.is_idle:
            output = cast(Tensor, output_quantizer(output))
        correction = low_rank_output(input, x_quantizer, weight_quantizer)
        return output if correction is None else output + correction


def quantized_linear(
    x: Tensor,
    x_quantizer: Quantizer,
    weight: Tensor | PackedParameter,
    weight_quantizer: Quantizer,
    bias: Tensor | None,
) -> Tensor:
    """Return `linear(x_quantizer(x), weight_quantizer(weight), bias)` by one operator.

    Args:
        x: [..., in].
        x_quantizer: Quantizer of `x`.
        weight: [out, in], dense or packed.
        weight_quantizer: Quantizer of `weight`; of a packed one, the formats that round it once more.
        bias: [out], or None.
    """
    if isinstance(weight, PackedParameter):
        if x_quantizer.is_idle and weight_quantizer.is_idle:
            return ops.packed_linear(x, bias, weight.quantized(), weight.spec, weight.dtype)
        return ops.packed_linear(
            x_quantizer.observe(x),
            bias,
            weight.quantized(),
            weight.spec,
            weight.dtype,
            x_quantizer.active_state(),
            x_quantizer.active_key,
            weight_quantizer.active_state(),
            weight_quantizer.active_key,
            x_quantizer.range_mask,
        )
    return ops.fake_quantized_linear(
        x_quantizer.observe(x),
        weight_quantizer.observe(weight),
        bias,
        x_quantizer.active_state(),
        x_quantizer.active_key,
        weight_quantizer.active_state(),
        weight_quantizer.active_key,
        x_quantizer.range_mask,
        weight_quantizer.range_mask,
    )


def low_rank_output(x: Tensor, x_quantizer: Quantizer, weight_quantizer: Quantizer) -> Tensor | None:
    """Return what a weight's low-rank correction adds to the output for `x` [..., in]; None when there is none."""
    low_rank = weight_quantizer.stages()[0].low_rank
    if low_rank is None:
        return None
    down, up = low_rank
    inner = F.linear(x_quantizer.stages()[0].scaled(x), down.to(x.dtype))
    return F.linear(inner, up.to(x.dtype))
