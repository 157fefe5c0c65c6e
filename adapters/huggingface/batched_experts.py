"""Llama 4's experts, which transformers runs all at once, with quantizers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from octavo.core.modules import PackedParameter, QuantExperts, WeightSlot

ORIGINAL = ("transformers.models.llama4.modeling_llama4", "Llama4TextExperts")


class QuantBatchedExperts(QuantExperts):
    """Mixin for `Llama4TextExperts`: two batched products, as there.

    Every expert gets every token, multiplied with its router score, and so zeros in place of the tokens that it was
    not chosen for: calibrating cannot show it more (`shows_all_tokens`).
    """

    projections: ClassVar = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    quantizer_names = (
        "gate_up_proj_input_quantizer",
        "gate_up_proj_weight_quantizer",
        "down_proj_input_quantizer",
        "down_proj_weight_quantizer",
    )
    num_experts: int
    hidden_size: int
    act_fn: Any

    @classmethod
    def is_in_one_tensor(cls, layer: nn.Module) -> bool:
        """Return True: the weights are [experts, in, out], which the original class does not say by a flag."""
        return True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return each expert's outputs, [experts * tokens, hidden], for inputs of the same shape."""
        x = hidden_states.view(self.num_experts, -1, self.hidden_size)
        self.count_tokens(x.any(-1).nonzero()[:, 0])
        up, down = self.weight_slots()
        gate, value = self._project(up, x).chunk(2, dim=-1)
        return self._project(down, value * self.act_fn(gate)).view(-1, self.hidden_size)

    def _project(self, slot: WeightSlot, x: Tensor) -> Tensor:
        held = self.held(slot.parameter)
        seen = held.dequantize() if isinstance(held, PackedParameter) else self.oriented(self, slot.parameter)
        weights = getattr(self, slot.quantizer)(seen)
        # The same memory order whether quantizers are on or off: products could differ in the last bit.
        return torch.bmm(getattr(self, slot.inputs)(x), weights.transpose(-1, -2).contiguous())


def is_batched(layer: nn.Module) -> bool:
    """Whether `layer` is of Llama 4's class, quantized or not."""
    return any((cls.__module__, cls.__name__) == ORIGINAL for cls in type(layer).__mro__)
