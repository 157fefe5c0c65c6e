"""Calibration: one run of algorithms over one model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.block_calls import CalibratedBlock
from octavo.core.calibration.part import WHOLE, Part
from octavo.core.calibration.solvers.grid import static
from octavo.core.calibration.statistics import InputStatistics
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.modules import QuantModule, WeightSlot, quantized_layers
from octavo.core.quantizers import TensorQuantizer

Groups = Iterable[Iterable[str]]


class Originals:
    """The values of weights before a run changed them."""

    def __init__(self) -> None:
        self._values: dict[nn.Parameter, Tensor] = {}

    def keep(self, parameter: nn.Parameter) -> None:
        """Keep the values of a parameter, if they are not kept already."""
        if parameter not in self._values:
            self._values[parameter] = parameter.detach().clone()

    def __len__(self) -> int:
        return len(self._values)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every value back."""
        for parameter, values in self._values.items():
            parameter.copy_(values)
        self._values.clear()


class Calibration:
    """A model under calibration: its weights as problems, what is known of their inputs, and what was done.

    Args:
        model: A quantized model whose quantizers have the scales of `max`.
        groups: Names of layers that read the same tensor.
        statistics: Of inputs, by the name of their quantizer; layers of a group share the first one's.
        originals: Keeps the values of weights that change.
        quiet: Print nothing.
        part: Which weights are solved.

    Attributes:
        block: The block that is calibrated alone, with what it reads and returns; None when the model is calibrated
            whole.
        rows: What was done to each weight, JSON-ready, for the report.
        unrounded: What weights were before an algorithm rounded them, fp32 [out, in] by `WeightProblem.name`, where it
            knows. Which of the codes near to it a weight takes can be learned from there.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        statistics: Mapping[str, InputStatistics],
        originals: Originals,
        quiet: bool = False,
        part: Part = WHOLE,
        block: CalibratedBlock | None = None,
    ) -> None:
        self.model = model
        self.block = block
        self._part = part
        self.quiet = quiet
        self.groups = tuple(tuple(group) for group in groups)
        self.rows: list[dict[str, Any]] = []
        self.unrounded: dict[str, Tensor] = {}
        self._statistics = statistics
        self._originals = originals
        self._first = first_readers(self.groups)

    def problems(self) -> Iterator[WeightProblem]:
        """Yield every weight matrix with a single quantizer that is on; weights of a stack one by one.

        Weights with other dims (convolutions), or with several quantizers in turn, keep the scales of `max`.
        """
        for name, layer in quantized_layers(self.model):
            if not self._part.has(name):
                continue
            weights = layer.quantized_weights()
            for slot in layer.weight_slots():
                if not _is_single(layer, slot):
                    continue
                weight = weights[slot.quantizer]
                known = self._statistics.get(input_name(name, slot, self._first))
                if slot.is_stacked:
                    for index in range(len(weight)):
                        yield WeightProblem(name, layer, slot, index, known)
                elif weight.dim() == 2:
                    yield WeightProblem(name, layer, slot, None, known)

    def grouped(self) -> list[list[WeightProblem]]:
        """Return the problems, those of layers that read the same tensor together."""
        found: dict[str, list[WeightProblem]] = {}
        for problem in self.problems():
            key = self._first.get(problem.layer_name, problem.layer_name)
            found.setdefault(f"{key}.{problem.slot.inputs}", []).append(problem)
        return list(found.values())

    def report(self, problem: WeightProblem, algorithm: str, **details: Any) -> None:
        """Note what `algorithm` did to a weight; `details` are JSON-ready."""
        self.rows.append({"weight": problem.name, "algorithm": algorithm, **details})

    @torch.no_grad()
    def set_weight(self, problem: WeightProblem, weight: Tensor) -> None:
        """Give a weight new values [out, in], as its quantizer sees them: a factor on the weight is then part of them.

        The original is kept until the run is over.
        """
        parameter = problem.layer.get_parameter(problem.slot.parameter)
        self._originals.keep(parameter)
        everything = problem.layer.quantized_weights()[problem.slot.quantizer]
        quantizer = problem.quantizer
        if quantizer.pre_quant_scale is not None:
            everything.copy_(quantizer.scaled(everything))
            quantizer.pre_quant_scale = None
        (everything if problem.index is None else everything[problem.index]).copy_(weight)

    @torch.no_grad()
    def share_second_levels(self) -> None:
        """Give weights that engines fuse, those that read the same tensor, one second-level scale: the largest.

        Codes that are chosen under scales of their own would be rounded again when a dialect shares them.
        """
        for problems in self.grouped():
            if problems[0].index is not None or len(problems) < 2:
                continue
            quantizers = [problem.quantizer for problem in problems]
            if any(q.spec is None or q.spec.global_max is None for q in quantizers):
                continue
            if len({static(p.spec) for p in problems}) == 1:
                shared = torch.stack([q.global_amax for q in quantizers]).amax(0)
                for quantizer in quantizers:
                    quantizer.set_state(**{**quantizer.named_state(), "global_amax": shared})


def first_readers(groups: Groups) -> dict[str, str]:
    """Return {layer: the layer that stands for its group}, for layers that read a tensor others read, too."""
    return {name: members[0] for group in groups for members in [list(group)] for name in members}


def input_name(layer: str, slot: WeightSlot, first: Mapping[str, str]) -> str:
    """Return the name of the quantizer whose statistics a weight's input has."""
    return f"{first.get(layer, layer)}.{slot.inputs}".removeprefix(".")


def _is_single(layer: QuantModule, slot: WeightSlot) -> bool:
    stages = layer.quantizers()[slot.quantizer].stages()
    return len(stages) == 1 and stages[0].enabled and isinstance(stages[0], TensorQuantizer)
