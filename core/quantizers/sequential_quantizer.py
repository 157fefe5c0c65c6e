"""SequentialQuantizer: several quantizers in turn on one tensor (INT4 values stored as FP8 of a group, say)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from octavo.core import ops
from octavo.core.quantizers.tensor_quantizer import TensorQuantizer


class SequentialQuantizer(nn.ModuleList):
    """Apply quantizers in turn; the names of its state are `<name>.0.amax`, `<name>.1.amax` and so on."""

    def __init__(self, quantizers: Iterable[TensorQuantizer] = ()) -> None:
        super().__init__(quantizers)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded to each format in turn, by one operator, as layers apply the chain."""
        return ops.operand(self.observe(x), self.active_state(), self.active_key, self.range_mask)

    def stages(self) -> list[TensorQuantizer]:
        """Return the quantizers that run in turn."""
        return [stage for stage in self if isinstance(stage, TensorQuantizer)]

    def observe(self, x: Tensor) -> Tensor:
        """Apply every stage's `pre_quant_scale` and show the tensor to every collector, without rounding."""
        for stage in self.stages():
            x = stage.observe(x)
        return x

    @property
    def is_idle(self) -> bool:
        """Whether every stage hands tensors on as they are and shows them to nobody."""
        return all(stage.is_idle for stage in self.stages())

    @property
    def active_key(self) -> str:
        """The chain of specs that `forward` applies, for the ops."""
        return "[" + ",".join(stage.active_key[1:-1] for stage in self.stages() if stage.is_active) + "]"

    @property
    def range_mask(self) -> bool:
        """Whether gradients stop where a value saturates in some stage; one stage without it turns it off."""
        return all(stage.range_mask for stage in self.stages())

    def active_state(self) -> list[Tensor]:
        """Return the calibrated tensors of the stages that round, in the order that the ops take them."""
        return [tensor for stage in self.stages() for tensor in stage.active_state()]


Quantizer = TensorQuantizer | SequentialQuantizer
