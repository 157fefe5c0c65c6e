"""Quantized `ColumnParallelLinear` and `RowParallelLinear`: each rank rounds its part of one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from octavo.adapters.megatron_core.sharded_state import sharded_quantizers, tensor_group
from octavo.core.errors import UnsupportedError
from octavo.core.model.segments import RowSegments
from octavo.core.modules import QuantModule, WeightSlot, quantized_linear
from octavo.core.modules.linear import low_rank_output
from octavo.core.quantizers import Quantizer


class QuantParallelLinear(QuantModule):
    """Mixin: `output_quantizer(linear(input_quantizer(x), weight_quantizer(weight), bias))` of one rank's part.

    The product is the operator of every quantized linear layer, whose backward keeps the input and the weight only.
    Communication stays where Megatron-core has it: an input that sequence parallelism divides is gathered before it
    is rounded, so that its scales are those of all tokens, and gradients of the input are summed. The weight's
    gradient goes through autograd, and Megatron's hooks add it to `main_grad`: neither the fusion of that sum into
    the product (`gradient_accumulation_fusion`) nor its overlap with communication is used.

    Attributes:
        divided_dim: The dim of the weight [out, in] that the ranks share: 0 or 1.
        is_gated: The rows of the weight are [gate; up], of which a rank has a part each.
        row_segments: What the weight's rows are, where those of one role have one scale among the scales of rows.
        shared_weight: Returns the weight that the layer is called with, where it has none of its own.
    """

    divided_dim: ClassVar[int]
    quantizer_names = ("input_quantizer", "weight_quantizer", "output_quantizer")
    own_attributes = ("is_gated", "shared_weight", "row_segments")
    is_gated: bool = False
    row_segments: RowSegments | None = None
    shared_weight: Callable[[], Tensor] | None = None
    weight: Tensor | None
    bias: Tensor | None
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    output_quantizer: Quantizer

    @property
    def ranks(self) -> Any:
        """The process group of the ranks that share the layer."""
        return tensor_group(self)

    @classmethod
    def rank_shape(cls, layer: nn.Module) -> tuple[int, int]:
        """Return the shape of a rank's part of the weight, [out, in]."""
        raise NotImplementedError

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` sees on this rank, with 0 for dims that vary."""
        rows, columns = cls.rank_shape(layer)
        if quantizer == "output_quantizer":
            gathers = bool(getattr(layer, "gather_output", False))
            return (0, cast(int, layer.output_size) if gathers else rows)
        return (rows, columns) if quantizer == "weight_quantizer" else (0, columns)

    @classmethod
    def weight_slots(cls) -> tuple[WeightSlot, ...]:
        """Return the weight's slot."""
        return (WeightSlot(),)

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the weight under the name of its quantizer, also one that the embedding has."""
        weight = (
            self.weight if self.weight is not None or self.shared_weight is None else self.shared_weight()
        )
        return {} if weight is None else {"weight_quantizer": weight}

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return (output, bias that the caller adds or None), as the layer does."""
        output, bias = super().forward(*args, **kwargs)
        return cast(Tensor, self.output_quantizer(output)), bias

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the product for a rank's part of `weight`, and do what its backward must communicate.

        Megatron-core hands over how, by keyword.
        """
        return self.quantized_product(self._communicated(input, **kwargs), weight, kwargs.get("bias"))

    def quantized_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `linear(input_quantizer(x), weight_quantizer(weight), bias)` and the weight's low-rank correction."""
        output = quantized_linear(x, self.input_quantizer, weight, self.weight_quantizer, bias)
        correction = low_rank_output(x, self.input_quantizer, self.weight_quantizer)
        return output if correction is None else output + correction

    def _communicated(
        self,
        x: Tensor,
        sequence_parallel: bool = False,
        allreduce_dgrad: bool = False,
        tp_group: Any = None,
        grad_output_buffer: Any = None,
        **_: Any,
    ) -> Tensor:
        """Return the input of the product: every rank's tokens, with a gradient that all ranks add to."""
        from megatron.core.tensor_parallel import mappings

        if grad_output_buffer is not None:
            raise UnsupportedError(
                "defer_embedding_wgrad_compute keeps the output layer's gradients for later, which a quantized output "
                "layer cannot; turn it off, or leave the layer out ({'quantizer_name': '*output_layer*', 'enable': "
                "False})"
            )
        if sequence_parallel:
            gathered = mappings.gather_from_sequence_parallel_region(
                x, tensor_parallel_output_grad=True, group=tp_group
            )
            return cast(Tensor, gathered)
        if allreduce_dgrad:
            return cast(Tensor, mappings.copy_to_tensor_model_parallel_region(x, group=tp_group))
        return x

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the layer's tensors for a distributed checkpoint, its quantizers' state divided as its weight is."""
        found: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        return found | sharded_quantizers(self, prefix, sharded_offsets, metadata)


class QuantColumnParallelLinear(QuantParallelLinear):
    """Mixin for `ColumnParallelLinear`: ranks share the output features."""

    divided_dim = 0

    @classmethod
    def rank_shape(cls, layer: nn.Module) -> tuple[int, int]:
        """Return the shape of a rank's part of the weight, [out / ranks, in]."""
        return cast(int, layer.output_size_per_partition), cast(int, layer.input_size)


class QuantRowParallelLinear(QuantParallelLinear):
    """Mixin for `RowParallelLinear`: ranks share the input features."""

    divided_dim = 1

    @classmethod
    def rank_shape(cls, layer: nn.Module) -> tuple[int, int]:
        """Return the shape of a rank's part of the weight, [out, in / ranks]."""
        return cast(int, layer.output_size), cast(int, layer.input_size_per_partition)
