"""Mixture-of-experts layers whose experts' weights are stacked in one parameter each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo.core.errors import UnsupportedError
from octavo.core.model.sharded import is_dtensor, is_sharded, whole_shape
from octavo.core.modules.base import QuantModule, WeightSlot


class QuantExperts(QuantModule):
    """Mixin for layers with parameters [experts, out, in], or [experts, in, out] where `is_transposed`.

    Each parameter has one quantizer for its weights, whose state is stacked along the experts, and one for its
    input, which all experts share. Their names have an underscore, `gate_up_proj_weight_quantizer`, since
    frameworks' renaming would catch state whose name extends the parameter's by a dot. An adapter combines the
    mixin with the framework's own class and defines `forward`.

    Quantized checkpoints hold a layer's parameter in one tensor where it is [experts, in, out], since engines multiply
    all experts at once there, and otherwise as one matrix for each expert and projection.

    Attributes:
        projections: {parameter: names under which configs speak of it, one for each of its equal row segments}.
        tokens_per_expert: int64 [experts]: how many tokens each expert was chosen for in the last calibration.
        shows_all_tokens: Every expert sees every token, to be calibrated; outputs stay those of the chosen ones.
        watcher: While set, is shown what each expert multiplies its weights with: the name of the input's quantizer,
            the expert, the input [tokens, in].
    """

    projections: ClassVar[dict[str, tuple[str, ...]]] = {}
    own_attributes = ("tokens_per_expert", "shows_all_tokens", "watcher", "_counts")
    tokens_per_expert: Tensor | None = None
    shows_all_tokens: bool = False
    watcher: Callable[[str, int, Tensor], None] | None = None
    _counts: bool = False

    @classmethod
    def weight_slots(cls) -> tuple[WeightSlot, ...]:
        """Return the stacked parameters."""
        return tuple(
            WeightSlot(f"{name}_weight_quantizer", name, f"{name}_input_quantizer", is_stacked=True)
            for name in cls.projections
        )

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` sees, with 0 for dims that vary."""
        slot = next(slot for slot in cls.weight_slots() if quantizer in (slot.quantizer, slot.inputs))
        if is_sharded(stack := getattr(layer, slot.parameter)) and not is_dtensor(stack):
            raise UnsupportedError(
                f"{slot.parameter}: ZeRO-3 holds these stacked experts {list(whole_shape(stack))}, whose parts cannot "
                "be told from here; attach quantizers before deepspeed.zero.Init, or leave the experts out"
            )
        experts, rows, columns = cls.oriented(layer, slot.parameter).shape
        return (experts, rows, columns) if quantizer == slot.quantizer else (0, columns)

    @classmethod
    def expert_names(cls, layer: nn.Module, quantizer: str) -> Iterator[str]:
        """Yield the names that `quantizer` would have if every expert had layers: `3.gate_proj.weight_quantizer`."""
        slot = next(slot for slot in cls.weight_slots() if quantizer in (slot.quantizer, slot.inputs))
        kind = "weight_quantizer" if quantizer == slot.quantizer else "input_quantizer"
        for expert in range(getattr(layer, slot.parameter).shape[0]):
            for name in cls.projections[slot.parameter]:
                yield f"{expert}.{name}.{kind}"

    @classmethod
    def disagreement(cls, layer: nn.Module) -> str:
        """Return how the layer's stacked parameters contradict each other, or an empty string.

        They must have as many experts each, in one dtype and on one device. A class that knows more of its layers
        says more.
        """
        stacks = {slot.parameter: getattr(layer, slot.parameter) for slot in cls.weight_slots()}
        if len({(stack.shape[0], stack.dtype, stack.device) for stack in stacks.values()}) < 2:
            return ""
        return "; ".join(
            f"{name} has {stack.shape[0]} experts in {str(stack.dtype).removeprefix('torch.')} on {stack.device}"
            for name, stack in stacks.items()
        )

    @classmethod
    def parts(cls, layer: nn.Module, parameter: str) -> tuple[tuple[str, ...], ...] | None:
        """Return the names of a parameter's matrices in quantized checkpoints, `3.gate_proj.weight`, by expert.

        None where they hold it in one tensor, or where its rows are not its projections one after the other.
        """
        if cls.is_in_one_tensor(layer) or not getattr(layer, "is_concatenated", True):
            return None
        names = cls.projections[parameter]
        experts = range(getattr(layer, parameter).shape[0])
        return tuple(tuple(f"{expert}.{name}.weight" for name in names) for expert in experts)

    @classmethod
    def is_in_one_tensor(cls, layer: nn.Module) -> bool:
        """Whether `layer` holds its weights, and quantized checkpoints do, as [experts, in, out]."""
        return bool(getattr(layer, "is_transposed", False))

    @classmethod
    def oriented(cls, layer: nn.Module, parameter: str) -> Tensor:
        """Return a stacked parameter as [experts, out, in], whichever way `layer` stores it; packed ones are so."""
        weights: Tensor = getattr(layer, parameter)
        is_packed = parameter in getattr(layer, "packed_parameters", ())
        return weights.transpose(-1, -2) if cls.is_in_one_tensor(layer) and not is_packed else weights

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the stacked weights [experts, out, in] by quantizer name."""
        return {slot.quantizer: self.oriented(self, slot.parameter) for slot in self.weight_slots()}

    def start_counting(self, shows_all_tokens: bool) -> None:
        """Count chosen tokens from zero on, until `stop_counting`."""
        slot = self.weight_slots()[0]
        self.tokens_per_expert = torch.zeros(getattr(self, slot.parameter).shape[0], dtype=torch.int64)
        self.shows_all_tokens, self._counts = shows_all_tokens, True

    def stop_counting(self) -> None:
        """Keep the counts and run as usual."""
        self.shows_all_tokens, self._counts = False, False

    def count_tokens(self, chosen: Tensor) -> None:
        """Add up, while counting, how many tokens each expert was chosen for (int64 [tokens, k])."""
        if self._counts and self.tokens_per_expert is not None:
            num_experts = len(self.tokens_per_expert)
            inside = chosen[chosen < num_experts].cpu()
            self.tokens_per_expert += torch.bincount(inside.flatten(), minlength=num_experts)

    def shown(self, slot: WeightSlot, expert: int, x: Tensor, is_chosen: bool = True) -> Tensor:
        """Return `x` [tokens, in], which an expert reads, after the watcher has seen it.

        Where every expert sees every token, the watcher sees that, and not the choice.
        """
        if self.watcher is not None and is_chosen != self.shows_all_tokens:
            self.watcher(slot.inputs, expert, x)
        return x
