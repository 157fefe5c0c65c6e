"""Mixture-of-experts layers whose experts are stacked in one parameter, run expert by expert with quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.formats import unstacked_chain
from octavo.core.modules import QuantExperts


class QuantStackedExperts(QuantExperts):
    """Mixin for the classes that transformers' `use_experts_implementation` decorates.

    Runs in the order of transformers' eager implementation, whichever the config chooses: only one expert at a
    time shows what reaches it. The class's flags (transposed, bias, gate) are respected.
    """

    first: ClassVar[str] = "gate_up_proj"
    quantizer_names = (
        "gate_up_proj_input_quantizer",
        "gate_up_proj_weight_quantizer",
        "down_proj_input_quantizer",
        "down_proj_weight_quantizer",
    )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs.

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: Chosen experts, int64 [tokens, k]; `num_experts` and above stand for none.
            top_k_weights: Their weights, [tokens, k].
        """
        num_experts = getattr(self, self.first).shape[0]
        self.count_tokens(top_k_index, num_experts)
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= num_experts:
                continue
            position, token = torch.where(top_k_index.T == expert)
            output = self._run(expert, hidden_states[token]) * top_k_weights[token, position, None]
            result.index_add_(0, token, output.to(result.dtype))
        if self.shows_all_tokens:
            for expert in range(num_experts):
                self._run(expert, hidden_states)
        return result

    def _run(self, expert: int, x: Tensor) -> Tensor:
        hidden = self._project(self.first, expert, x)
        hidden = self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden)  # type: ignore[operator]
        return self._project("down_proj", expert, hidden)

    def _project(self, name: str, expert: int, x: Tensor) -> Tensor:
        x_quantizer, quantizer = (getattr(self, f"{name}_{kind}_quantizer") for kind in ("input", "weight"))
        return ops.fake_quantized_linear(
            x_quantizer.observe(x),
            self._oriented(getattr(self, name)[expert]),
            getattr(self, f"{name}_bias")[expert] if self.has_bias else None,
            x_quantizer.active_state(),
            x_quantizer.active_key,
            [state[expert] for state in quantizer.active_state()],
            unstacked_chain(quantizer.active_key),
            x_quantizer.range_mask,
            quantizer.range_mask,
        )
