"""Mixture-of-experts layers of transformers, run expert by expert with quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from octavo.adapters.huggingface.batched_experts import QuantBatchedExperts, is_batched
from octavo.core import ops
from octavo.core.formats import Quantized, unstacked_chain
from octavo.core.modules import PackedParameter, QuantExperts, WeightSlot
from octavo.core.packed import PackedTensor


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

    @classmethod
    def disagreement(cls, layer: Any) -> str:
        """Return how the layer's parameters contradict each other or the number of experts that it routes to."""
        if found := super().disagreement(layer):
            return found
        names = list(cls.projections)
        (experts, rows, hidden), (_, out, width) = (cls.oriented(layer, name).shape for name in names)
        if experts != layer.num_experts:
            return f"they have {experts} experts and the layer routes to {layer.num_experts}"
        expected = 2 * width if layer.has_gate else width
        if (rows, hidden) == (expected, out):
            return ""
        return (
            f"{names[0]} maps {hidden} values to {rows} and {names[1]} maps {width} to {out}; expected {names[0]} to "
            f"map {out} to {expected}"
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs, [tokens, hidden].

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: Chosen experts, int64 [tokens, k]; `num_experts` stands for none.
            top_k_weights: Their weights, [tokens, k].
        """
        self.count_tokens(top_k_index)
        up, down = self.weight_slots()
        weights = {slot.quantizer: self._seen(slot) for slot in (up, down)}
        x = getattr(self, up.inputs).observe(hidden_states)
        routed = self._routed(top_k_index)
        if not routed:
            return torch.zeros_like(hidden_states)
        hidden = [
            self._gated(self._project(up, expert, self.shown(up, expert, x[token]), weights))
            for expert, token, _ in routed
        ]
        seen = torch.split(
            getattr(self, down.inputs).observe(torch.cat(hidden)), [len(part) for part in hidden]
        )
        result = torch.zeros_like(hidden_states)
        for (expert, token, position), part in zip(routed, seen, strict=True):
            output = (
                self._project(down, expert, self.shown(down, expert, part), weights)
                * top_k_weights[token, position, None]
            )
            result.index_add_(0, token, output.to(result.dtype))
        if self.shows_all_tokens:
            for expert in range(self.num_experts):
                seen_by_all = getattr(self, down.inputs).observe(
                    self._gated(self._project(up, expert, x, weights))
                )
                self.shown(down, expert, seen_by_all, is_chosen=False)
        return result

    def _routed(self, top_k_index: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Return (expert, its tokens, which of their k choices it is) of the chosen experts, in transformers' order."""
        num_tokens = top_k_index.shape[0]
        chosen = top_k_index.T.flatten()
        counts = torch.bincount(chosen, minlength=self.num_experts)[: self.num_experts].tolist()
        order = chosen.argsort(stable=True)[: sum(counts)]
        parts = zip(range(self.num_experts), torch.split(order, counts), strict=True)
        return [(expert, part % num_tokens, part // num_tokens) for expert, part in parts if len(part)]

    def _gated(self, projected: Tensor) -> Tensor:
        gated: Tensor = self._apply_gate(projected) if self.has_gate else self.act_fn(projected)
        return gated

    def _seen(self, slot: WeightSlot) -> Tensor | PackedTensor:
        """Return a stack of weights [experts, out, in] as its quantizer has observed it, or packed."""
        held = self.held(slot.parameter)
        if isinstance(held, PackedParameter):
            return held.tensor()
        seen: Tensor = getattr(self, slot.quantizer).observe(self.oriented(self, slot.parameter))
        return seen

    def _project(
        self, slot: WeightSlot, expert: int, x: Tensor, weights: Mapping[str, Tensor | PackedTensor]
    ) -> Tensor:
        """Multiply an input, which its quantizer has observed, with one expert's weight."""
        x_quantizer, weight_quantizer = getattr(self, slot.inputs), getattr(self, slot.quantizer)
        bias = getattr(self, f"{slot.parameter}_bias")[expert] if self.has_bias else None
        state = [tensor[expert] for tensor in weight_quantizer.active_state()]
        chain, weight = unstacked_chain(weight_quantizer.active_key), weights[slot.quantizer]
        if isinstance(weight, PackedTensor):
            one = weight.one_of_stack(expert)
            codes = Quantized(one.payload, one.scale, one.global_scale)
            return ops.packed_linear(
                x,
                bias,
                codes,
                one.spec,
                one.dtype,
                x_quantizer.active_state(),
                x_quantizer.active_key,
                state,
                chain,
                x_quantizer.range_mask,
            )
        return ops.fake_quantized_linear(
            x,
            weight[expert],
            bias,
            x_quantizer.active_state(),
            x_quantizer.active_key,
            state,
            chain,
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
    """Return the mixin for a layer of stacked experts, else None."""
    if is_batched(layer):
        return QuantBatchedExperts
    if not hasattr(layer, "_is_expert_parallel") or getattr(layer, "has_post_expert_norm", False):
        return None
    mixin = QuantGatedExperts if layer.has_gate else QuantUngatedExperts
    weights = [getattr(layer, name, None) for name in mixin.projections]
    is_stacked = all(isinstance(weight, nn.Parameter) and weight.dim() == 3 for weight in weights)
    return cast("type[QuantExperts]", mixin) if is_stacked else None
