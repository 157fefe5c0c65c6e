"""Quantized nn.Embedding."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import embedding

from octavo.core.modules.base import QuantModule
from octavo.core.modules.packed_parameter import PackedParameter, dense
from octavo.core.packed import PackedTensor
from octavo.core.packed.rows import take_rows
from octavo.core.quantizers import Quantizer


class QuantEmbedding(QuantModule, nn.Embedding):
    """`output_quantizer(embedding(input, weight_quantizer(weight)))`; the input is indices and has no quantizer."""

    quantizer_names = ("weight_quantizer", "output_quantizer")
    weight_quantizer: Quantizer
    output_quantizer: Quantizer

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` sees, with 0 for dims that vary."""
        table = cast(nn.Embedding, layer)
        rows = table.num_embeddings if quantizer == "weight_quantizer" else 0
        return (rows, table.embedding_dim)

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the weight under the name of its quantizer."""
        return {"weight_quantizer": self.weight}

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows [..., embedding_dim] of the quantized table for indices [...]."""
        return cast(Tensor, self.output_quantizer(self._rows(input)))

    def _rows(self, input: Tensor) -> Tensor:
        held = self.held("weight")
        if isinstance(held, PackedParameter) and self.max_norm is None and _has_scale_for_each_row(held):
            # Only the rows that are asked for: a whole table takes longer to decode than a layer to run.
            rows = take_rows(held.tensor(), input.flatten())
            assert isinstance(rows, PackedTensor)  # noqa: S101 (as it was given)
            return cast(Tensor, self.weight_quantizer(rows.dequantize()).unflatten(0, input.shape))
        return embedding(
            input,
            self.weight_quantizer(dense(held)),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


def _has_scale_for_each_row(table: PackedParameter) -> bool:
    return table.quantized().scale.shape[:1] == table.shape[:1]
