"""Attention layers whose two products are quantized: what goes into them, and what comes out of the second."""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor, nn

from octavo.core.modules.base import QuantModule
from octavo.core.quantizers import Quantizer

_PROBABILITIES = "p_bmm_quantizer"
_OUTPUT = "bmm2_output_quantizer"


class QuantAttention(QuantModule):
    """Mixin for attention layers; combined on the fly with the framework's own class, whose forward runs.

    The adapter makes the framework's attention function call `quantize_qkv`, `quantize_probabilities` and
    `quantize_output`.
    """

    quantizer_names: ClassVar[tuple[str, ...]] = (
        "q_bmm_quantizer",
        "k_bmm_quantizer",
        "v_bmm_quantizer",
        _PROBABILITIES,
        _OUTPUT,
    )
    on_demand: ClassVar[tuple[str, ...]] = (_PROBABILITIES, _OUTPUT)
    q_bmm_quantizer: Quantizer
    k_bmm_quantizer: Quantizer
    v_bmm_quantizer: Quantizer

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return (batch, heads, tokens, head_dim) with 0 for dims that vary; None without a `head_dim`.

        Probabilities are [batch, heads, tokens, keys], outputs [batch, tokens, heads, head_dim].
        """
        if quantizer == _PROBABILITIES:
            return (0, 0, 0, 0)
        head_dim = getattr(layer, "head_dim", None)
        return (0, 0, 0, head_dim) if isinstance(head_dim, int) else None

    @property
    def has_probabilities(self) -> bool:
        """Whether the softmax output is quantized or calibrated, so that attention has to compute one."""
        quantizer = self.quantizers().get(_PROBABILITIES)
        return quantizer is not None and any(stage.enabled for stage in quantizer.stages())

    def quantize_qkv(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return quantized queries, keys and values, each [batch, heads, tokens, head_dim]."""
        return (
            cast(Tensor, self.q_bmm_quantizer(query)),
            cast(Tensor, self.k_bmm_quantizer(key)),
            cast(Tensor, self.v_bmm_quantizer(value)),
        )

    def quantize_probabilities(self, probabilities: Tensor) -> Tensor:
        """Return the quantized output of the softmax, [batch, heads, tokens, keys], before dropout."""
        return self._quantized(_PROBABILITIES, probabilities)

    def quantize_output(self, output: Tensor) -> Tensor:
        """Return the quantized product of probabilities and values, [batch, tokens, heads, head_dim]."""
        return self._quantized(_OUTPUT, output)

    def _quantized(self, quantizer: str, x: Tensor) -> Tensor:
        return cast(Tensor, getattr(self, quantizer)(x)) if hasattr(self, quantizer) else x
