"""Mixture-of-experts layers whose experts' weights are stacked in one parameter each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo.core.modules.base import QuantModule, WeightSlot


class QuantExperts(QuantModule):
    """Mixin for layers with parameters [experts, out, in], or [experts, in, out] where `is_transposed`.

    Each parameter has one quantizer for its weights, whose state is stacked along the experts, and one for its
    input, which all experts share. Adapters combine it with the framework's own class and define `forward`.

    Attributes:
        tokens_per_expert: While calibrating, int64 [experts]: how many tokens each expert was chosen for.
        shows_all_tokens: While calibrating, show every token to every expert; results stay those of the chosen ones.
    """

    tokens_per_expert: Tensor | None = None
    shows_all_tokens: bool = False

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` sees, with 0 for dims that vary."""
        slot = next(slot for slot in cls.weight_slots if quantizer in (slot.quantizer, slot.inputs))
        experts, rows, columns = cls.oriented(layer, getattr(layer, slot.parameter)).shape
        return (experts, rows, columns) if quantizer == slot.quantizer else (0, columns)

    @staticmethod
    def oriented(layer: nn.Module, weights: Tensor) -> Tensor:
        """Return weights as [..., out, in], whichever way `layer` stores them."""
        return weights.transpose(-1, -2) if getattr(layer, "is_transposed", False) else weights

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the stacked weights [experts, out, in] by quantizer name."""
        return {slot.quantizer: self.oriented(self, getattr(self, slot.parameter)) for slot in self.weight_slots}

    def count_tokens(self, chosen: Tensor, num_experts: int) -> None:
        """Add up, while calibrating, how many tokens each expert was chosen for."""
        if self.tokens_per_expert is not None:
            inside = chosen[chosen < num_experts]
            self.tokens_per_expert += torch.bincount(inside.flatten(), minlength=num_experts)


def stacked_slots(*parameters: str) -> tuple[WeightSlot, ...]:
    """Return the slots of parameters that stack weights: `<parameter>_weight_quantizer` and `<parameter>_input_…`.

    An underscore, not a dot: frameworks' checkpoint renaming would otherwise catch the state beside a parameter.
    """
    return tuple(
        WeightSlot(f"{name}_weight_quantizer", name, f"{name}_input_quantizer", stacked=True) for name in parameters
    )
