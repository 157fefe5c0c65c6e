"""Quantized convolutions, plain and transposed, over one to three spatial dims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import conv_transpose1d, conv_transpose2d, conv_transpose3d

from octavo.core.model.sharded import whole_shape
from octavo.core.modules.base import QuantModule
from octavo.core.modules.packed_parameter import dense
from octavo.core.quantizers import Quantizer

_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: conv_transpose1d,
    2: conv_transpose2d,
    3: conv_transpose3d,
}


class QuantConvolution(QuantModule):
    """`output_quantizer(conv(input_quantizer(input), weight_quantizer(weight), bias))`.

    Mixin for `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`, whose weight is [out, in / groups, *kernel]: axis 0 is the
    output channel. Backward keeps the quantized input and weight.
    """

    quantizer_names = ("input_quantizer", "weight_quantizer", "output_quantizer")
    weight: Tensor
    bias: Tensor | None
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    output_quantizer: Quantizer
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` sees, with 0 for dims that vary."""
        conv = cast(Any, layer)
        varying = (0,) * len(conv.kernel_size)
        shapes = {
            "input_quantizer": (0, conv.in_channels, *varying),
            "weight_quantizer": whole_shape(conv.weight),
            "output_quantizer": (0, conv.out_channels, *varying),
        }
        return shapes[quantizer]

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the weight under the name of its quantizer."""
        return {"weight_quantizer": self.weight}

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output [batch, out_channels, …] for an input [batch, in_channels, …]."""
        weight = self.weight_quantizer(dense(self.held("weight")))
        output = self._conv_forward(self.input_quantizer(input), weight, self.bias)
        return cast(Tensor, self.output_quantizer(output))


class QuantTransposedConvolution(QuantConvolution):
    """The same for `nn.ConvTranspose1d` to `3d`, whose weight is [in, out / groups, *kernel].

    Axis 0 is the input channel here; ModelOpt's presets have one scale for each of these, too.
    """

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the layer's output [batch, out_channels, …], whose spatial dims `output_size` may choose."""
        conv = cast(Any, self)
        num_spatial_dims = len(conv.kernel_size)
        output_padding = conv._output_padding(
            input, output_size, conv.stride, conv.padding, conv.kernel_size, num_spatial_dims, conv.dilation
        )
        output = _TRANSPOSED[num_spatial_dims](
            self.input_quantizer(input),
            self.weight_quantizer(dense(self.held("weight"))),
            self.bias,
            conv.stride,
            conv.padding,
            output_padding,
            conv.groups,
            conv.dilation,
        )
        return cast(Tensor, self.output_quantizer(output))
