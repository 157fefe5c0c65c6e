"""Core attention on quantized queries, keys and values."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from octavo.core.modules import QuantAttention


class QuantCoreAttention(QuantAttention):
    """Mixin for `DotProductAttention`, which is called with queries, keys and values, and computes all else.

    What happens inside cannot be quantized: it has no quantizer of probabilities or of the output.
    """

    quantizer_names = ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")
    on_demand = ()

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return (batch, heads, tokens, head_dim), with 0 for dims that vary."""
        return (0, 0, 0, cast(int, layer.hidden_size_per_attention_head))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output for query, key and value [tokens, batch, heads, head_dim]."""
        quantized = self.quantize_qkv(*(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)))
        return super().forward(*(tensor.permute(2, 0, 1, 3) for tensor in quantized), *args, **kwargs)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the layer's tensors for a distributed checkpoint, with its quantizers', whose scales ranks share."""
        from megatron.core.transformer.utils import (
            ensure_metadata_has_dp_cp_group,
            make_sharded_tensors_for_checkpoint,
        )

        found: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        state: dict[str, Tensor] = {}
        for name, quantizer in self.quantizers().items():
            quantizer.state_dict(destination=state, prefix=f"{name}.", keep_vars=True)
        group = ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"]
        found |= make_sharded_tensors_for_checkpoint(
            state, prefix, {}, sharded_offsets, tp_group=self.tp_group, dp_cp_group=group
        )
        return found
