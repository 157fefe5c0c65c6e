"""Attention layers whose queries, keys and values are quantized before the attention product."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from octavo.core.modules.base import QuantModule
from octavo.core.quantizers import Quantizer


class QuantAttention(QuantModule):
    """Mixin for attention layers; combined on the fly with the framework's own class, whose forward runs.

    The adapter makes the framework's attention function call `quantize_qkv`.
    """

    quantizer_names = ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")
    q_bmm_quantizer: Quantizer
    k_bmm_quantizer: Quantizer
    v_bmm_quantizer: Quantizer

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return (batch, heads, tokens, head_dim) with 0 for dims that vary; None without a `head_dim`."""
        head_dim = getattr(layer, "head_dim", None)
        return (0, 0, 0, head_dim) if isinstance(head_dim, int) else None

    def quantize_qkv(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return quantized queries, keys and values, each [batch, heads, tokens, head_dim]."""
        return (
            cast(Tensor, self.q_bmm_quantizer(query)),
            cast(Tensor, self.k_bmm_quantizer(key)),
            cast(Tensor, self.v_bmm_quantizer(value)),
        )
