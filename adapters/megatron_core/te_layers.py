"""Quantized Transformer Engine linear layers, as Megatron-core wraps them; written from its source, which needs CUDA.

Transformer Engine multiplies inside kernels that no rounding reaches. A quantized layer multiplies by Octavo's
operator, with the communication of Megatron-core's own layers, and reads no more than its parameters and settings.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from octavo.adapters.megatron_core.layers import QuantParallelLinear


class QuantTELinear(QuantParallelLinear):
    """What column- and row-parallel layers of Transformer Engine have in common.

    Experts communicate outside of their layers: for these, `parallel_mode` is None.
    """

    parallel_mode: str | None
    tp_size: int
    sequence_parallel: bool
    use_bias: bool
    te_return_bias: bool

    @classmethod
    def rank_shape(cls, layer: nn.Module) -> tuple[int, int]:
        """Return the shape of a rank's part of the weight, [out, in]."""
        return cast(int, layer.out_features), cast(int, layer.in_features)

    @property
    def shares(self) -> bool:
        """Whether the layer communicates by itself."""
        return self.parallel_mode is not None and self.tp_size > 1

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the product with the rank's part of the weight, for an input of any dtype."""
        weight = cast(Tensor, self.weight)
        return self.quantized_product(x.to(weight.dtype), weight, bias)

    def bias_inside(self) -> Tensor | None:
        """Return the bias that the layer adds itself."""
        return self.bias if self.use_bias and not self.te_return_bias else None

    def bias_outside(self) -> Tensor | None:
        """Return the bias that the caller adds."""
        return self.bias if self.te_return_bias else None


class QuantTEColumnParallelLinear(QuantTELinear):
    """Mixin for `TEColumnParallelLinear`: ranks share the output features."""

    divided_dim = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (output, bias that the caller adds or None) for an input [tokens, batch, in]."""
        x = self._communicated(x, self.shares and self.sequence_parallel, self.shares, self.ranks)
        output = self.product(x, self.bias_inside())
        return cast(Tensor, self.output_quantizer(output)), self.bias_outside()


class QuantTELayerNormColumnParallelLinear(QuantTEColumnParallelLinear):
    """Mixin for `TELayerNormColumnParallelLinear`, which normalizes its input first; in torch here, in fp32."""

    normalization: str
    zero_centered_gamma: bool
    eps: float
    layer_norm_weight: Tensor
    layer_norm_bias: Tensor | None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (output, bias that the caller adds or None) for an input [tokens, batch, in]."""
        return super().forward(self.normalized(x))

    def normalized(self, x: Tensor) -> Tensor:
        """Return what the linear layer reads."""
        weight = self.layer_norm_weight.float() + int(self.zero_centered_gamma)
        values, shape = x.float(), (x.shape[-1],)
        if self.normalization == "RMSNorm":
            return F.rms_norm(values, shape, weight, self.eps).to(x.dtype)
        bias = None if self.layer_norm_bias is None else self.layer_norm_bias.float()
        return F.layer_norm(values, shape, weight, bias, self.eps).to(x.dtype)


class QuantTERowParallelLinear(QuantTELinear):
    """Mixin for `TERowParallelLinear`: ranks share the input features."""

    divided_dim = 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (output, bias that the caller adds or None) for an input [tokens, batch, in / ranks]."""
        from megatron.core.tensor_parallel import mappings

        output: Any = self.product(x, None)
        if self.shares and self.sequence_parallel:
            output = mappings.reduce_scatter_to_sequence_parallel_region(output, group=self.ranks)
        elif self.shares:
            output = mappings.reduce_from_tensor_model_parallel_region(output, group=self.ranks)
        bias = self.bias_inside()
        output = output if bias is None else output + bias
        return cast(Tensor, self.output_quantizer(output)), self.bias_outside()
