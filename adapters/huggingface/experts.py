"""Mixture-of-experts layers of transformers, run expert by expert with quantizers."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.formats import unstacked_chain
from octavo.core.modules import QuantExperts, WeightSlot


class QuantStackedExperts(QuantExperts):
    """Mixin for the classes that transformers' `use_experts_implementation` decorates.

    Runs in the order of transformers' eager implementation, whichever the config chooses: only one expert at a
    time shows what reaches it. The class's flags (transposed, bias, gate) are respected.
    """

    num_experts: int
    has_bias: bool
    has_gate: bool
    act_fn: Any
    _apply_gate: Any

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs, [tokens, hidden].

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: Chosen experts, int64 [tokens, k]; `num_experts` stands for none.
            top_k_weights: Their weights, [tokens, k].
        """
        self.count_tokens(top_k_index)
        observed = {
            name: getattr(self, name).observe(weights) for name, weights in self.quantized_weights().items()
        }
        first, last = (observed[slot.quantizer] for slot in self.weight_slots())
        result = torch.zeros_like(hidden_states)
        for expert in torch.unique(top_k_index).tolist():
            if expert < self.num_experts:
                position, token = torch.where(expert == top_k_index.T)
                output = self._run(expert, hidden_states[token], first[expert], last[expert])
                output = output * top_k_weights[token, position, None]
                result.index_add_(0, token, output.to(result.dtype))
        if self.shows_all_tokens:
            for expert in range(self.num_experts):
                self._run(expert, hidden_states, first[expert], last[expert])
        return result

    def _run(self, expert: int, x: Tensor, first: Tensor, last: Tensor) -> Tensor:
        up, down = self.weight_slots()
        hidden = self._project(up, expert, x, first)
        hidden = self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden)
        return self._project(down, expert, hidden, last)

    def _project(self, slot: WeightSlot, expert: int, x: Tensor, weight: Tensor) -> Tensor:
        x_quantizer, weight_quantizer = getattr(self, slot.inputs), getattr(self, slot.quantizer)
        return ops.fake_quantized_linear(
            x_quantizer.observe(x),
            weight,
            getattr(self, f"{slot.parameter}_bias")[expert] if self.has_bias else None,
            x_quantizer.active_state(),
            x_quantizer.active_key,
            [state[expert] for state in weight_quantizer.active_state()],
            unstacked_chain(weight_quantizer.active_key),
            x_quantizer.range_mask,
            weight_quantizer.range_mask,
        )


class QuantGatedExperts(QuantStackedExperts):
    """Experts with gate and up projection in one parameter."""

    projections: ClassVar = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    quantizer_names = (
        "gate_up_proj_input_quantizer",
        "gate_up_proj_weight_quantizer",
        "down_proj_input_quantizer",
        "down_proj_weight_quantizer",
    )


class QuantUngatedExperts(QuantStackedExperts):
    """Experts without a gate."""

    projections: ClassVar = {"up_proj": ("up_proj",), "down_proj": ("down_proj",)}
    quantizer_names = (
        "up_proj_input_quantizer",
        "up_proj_weight_quantizer",
        "down_proj_input_quantizer",
        "down_proj_weight_quantizer",
    )


def experts_mixin(layer: nn.Module) -> type[QuantExperts] | None:
    """Return the mixin for a layer of stacked experts that can be run one by one, else None."""
    if not hasattr(layer, "_is_expert_parallel") or getattr(layer, "has_post_expert_norm", False):
        return None
    mixin = QuantGatedExperts if layer.has_gate else QuantUngatedExperts
    weights = [getattr(layer, name, None) for name in mixin.projections]
    is_stacked = all(isinstance(weight, nn.Parameter) and weight.dim() == 3 for weight in weights)
    return cast("type[QuantExperts]", mixin) if is_stacked else None
