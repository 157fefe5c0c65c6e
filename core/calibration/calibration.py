"""Calibration: one run of algorithms over one model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.block_calls import CalibratedBlock
from octavo.core.calibration.expert_inputs import ExpertInput, ExpertInputs
from octavo.core.calibration.expert_rules import SHARED, ExpertRules
from octavo.core.calibration.originals import Originals
from octavo.core.calibration.part import WHOLE, Part
from octavo.core.calibration.solvers.grid import static
from octavo.core.calibration.solvers.sqnr import gram_sqnr, tensor_sqnr
from octavo.core.calibration.statistics import InputStatistics
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.errors import listed
from octavo.core.model.sharded import whole_shape
from octavo.core.modules import QuantModule, WeightSlot, quantized_layers
from octavo.core.quantizers import TensorQuantizer

Groups = Iterable[Iterable[str]]


class Calibration:
    """A model under calibration: its weights as problems, what is known of their inputs, and what was done.

    Args:
        model: A quantized model whose quantizers have the scales of `max`.
        groups: Names of layers that read the same tensor.
        statistics: Of inputs, by the name of their quantizer; layers of a group share the first one's.
        originals: Keeps the values of weights that change.
        quiet: Print nothing.
        part: Which weights are solved.
        block: The block that is calibrated alone, with what it reads and returns; None when the model is calibrated
            whole.
        experts: Which statistics experts are solved with.

    Attributes:
        block: As given.
        rows: What was done to each weight, JSON-ready, for the report.
        originals: The values of weights that changed.
        exact: The weights of a block before the first algorithm changed them, fp32 [out, in] as their quantizers see
            them, by `WeightProblem.name`. Of a whole model they would not fit.
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
        experts: ExpertRules = SHARED,
    ) -> None:
        self.model = model
        self.block = block
        self._part = part
        self.quiet = quiet
        self.groups = tuple(tuple(group) for group in groups)
        self.rows: list[dict[str, Any]] = []
        self.unrounded: dict[str, Tensor] = {}
        self.exact: dict[str, Tensor] = {}
        self._inputs = ExpertInputs(statistics, experts)
        self._left: set[str] = set()
        self.originals = originals
        self._first = first_readers(self.groups)

    @property
    def is_whole(self) -> bool:
        """Whether all weights of the model are solved at once."""
        return self._part == WHOLE

    def has(self, name: str) -> bool:
        """Whether the weights of a layer are solved now."""
        return self._part.has(name)

    def statistics_of(self, layer: str) -> InputStatistics | None:
        """Return what is known of the input of a layer with one weight; None where nothing is."""
        return self._inputs.of_layer(input_name(layer, WeightSlot(), self._first)).statistics

    def problems(self, chains: bool = False) -> Iterator[WeightProblem]:
        """Yield every weight matrix with a single quantizer that is on; weights of a stack one by one.

        Weights with other dims (convolutions) keep the scales of `max`; so do experts of which too little is known,
        which is noted.

        Args:
            chains: Yield those with several quantizers in turn, too; a problem's format is that of the first.
        """
        for name, layer in quantized_layers(self.model):
            if not self._part.has(name):
                continue
            weights = layer.quantized_weights()
            for slot in layer.weight_slots():
                if not (_has_chain(layer, slot) if chains else _is_single(layer, slot)):
                    continue
                weight = weights[slot.quantizer]
                inputs = input_name(name, slot, self._first)
                if slot.is_stacked:
                    for index in range(len(weight)):
                        known = self._inputs.of_stacked(inputs, index, layer)
                        yield from self._solvable(name, layer, slot, index, known)
                elif len(whole_shape(getattr(layer, slot.parameter))) == 2:
                    yield from self._solvable(name, layer, slot, None, self._inputs.of_layer(inputs))

    def grouped(self) -> list[list[WeightProblem]]:
        """Return the problems, those of layers that read the same tensor together."""
        found: dict[str, list[WeightProblem]] = {}
        for problem in self.problems():
            key = self._first.get(problem.layer_name, problem.layer_name)
            found.setdefault(f"{key}.{problem.slot.inputs}", []).append(problem)
        return list(found.values())

    def report(self, problem: WeightProblem, algorithm: str, **details: Any) -> None:
        """Note what `algorithm` did to a weight.

        Args:
            problem: The weight.
            algorithm: The algorithm's name.
            details: What it chose, JSON-ready; those with a meaning of their own are `fallback` (what it did instead of
                what it should, and why), `weight_sqnr_db` and `output_sqnr_db` (`report_errors`).
        """
        reasons = [reason for reason in (problem.fallback, details.get("fallback")) if reason]
        if reasons:
            details["fallback"] = "; ".join(reasons)
        self.rows.append({"weight": problem.name, "algorithm": algorithm, **details})

    def few_tokens(self) -> str:
        """Return a warning that names inputs with fewer tokens than channels, or an empty string.

        For algorithms that solve with XᵀX; `InputStatistics.rank_note` says the same of one input, for `report`.
        """
        known = {p.layer_name: p.statistics for p in self.problems() if p.statistics is not None}
        few = [f"{name} ({s.num_tokens} of {s.num_channels})" for name, s in known.items() if s.rank_note()]
        if not few:
            return ""
        return (
            f"the inputs of {len(few)} of {len(known)} layers saw fewer tokens than they have channels, so that "
            f"damping decides in the directions that none showed: {listed(few, 3)}; give more calibration data"
        )

    @torch.no_grad()
    def report_errors(
        self, problem: WeightProblem, original_weight: Tensor, new_weight: Tensor
    ) -> dict[str, float | None]:
        """Return how well a new weight stands for the original one, as `report` takes it.

        The output's ratio is that of all tokens where their Gram is known, with inputs as they are; else that of the
        held tokens, with inputs as they are rounded.

        Args:
            problem: The weight.
            original_weight: [out, in], as the quantizer sees it under the present factors (`problem.weight()`).
            new_weight: [out, in], the values that will be stored.

        Returns:
            `weight_sqnr_db` and `output_sqnr_db`, in dB; None where nothing was lost, or nothing is known.
        """
        known = problem.statistics
        output: float | None = None
        if known is not None and known.needs.gram:
            output = gram_sqnr(original_weight, new_weight, problem.gram())
        elif known is not None and len(known.held.tokens()):
            exact = problem.held_tokens().float() @ original_weight.float().T
            output = tensor_sqnr(exact, problem.rounded_tokens() @ new_weight.float().T)
        return {"weight_sqnr_db": tensor_sqnr(original_weight, new_weight), "output_sqnr_db": output}

    def report_unsolved(self, algorithm: str) -> None:
        """Note the weights that are no problems: several quantizers in turn, or no matrix."""
        for name, layer in quantized_layers(self.model):
            for slot in layer.weight_slots() if self._part.has(name) else ():
                stages = layer.quantizers()[slot.quantizer].stages()
                if not any(stage.enabled for stage in stages):
                    continue
                dims = len(whole_shape(getattr(layer, slot.parameter)))
                if not _is_single(layer, slot):
                    reason = f"{len(stages)} quantizers in turn"
                elif dims != 2 and not slot.is_stacked:
                    reason = f"a weight with {dims} dims"
                else:
                    continue
                fallback = f"scales of max: {algorithm} solves matrices with one quantizer, found {reason}"
                weight = f"{name}.{slot.parameter}".removeprefix(".")
                self.rows.append({"weight": weight, "algorithm": algorithm, "fallback": fallback})

    @torch.no_grad()
    def set_weight(self, problem: WeightProblem, weight: Tensor) -> None:
        """Give a weight new values [out, in], as its quantizer sees them: a factor on the weight is then part of them.

        The original is kept until the run is over.
        """
        if self.block is not None and problem.name not in self.exact:
            self.exact[problem.name] = problem.weight().clone()
        parameter = problem.layer.get_parameter(problem.slot.parameter)
        self.originals.keep(parameter)
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

    def _solvable(
        self, name: str, layer: QuantModule, slot: WeightSlot, index: int | None, known: ExpertInput
    ) -> Iterator[WeightProblem]:
        """Yield the problem, or note once that there is none."""
        problem = WeightProblem(name, layer, slot, index, known.statistics, known.fallback)
        if known.is_solved:
            yield problem
        elif problem.name not in self._left:
            self._left.add(problem.name)
            self.report(problem, "max")


def first_readers(groups: Groups) -> dict[str, str]:
    """Return {layer: the layer that stands for its group}, for layers that read a tensor others read, too."""
    return {name: members[0] for group in groups for members in [list(group)] for name in members}


def input_name(layer: str, slot: WeightSlot, first: Mapping[str, str]) -> str:
    """Return the name of the quantizer whose statistics a weight's input has."""
    return f"{first.get(layer, layer)}.{slot.inputs}".removeprefix(".")


def _has_chain(layer: QuantModule, slot: WeightSlot) -> bool:
    return all(
        stage.enabled and stage.spec is not None for stage in layer.quantizers()[slot.quantizer].stages()
    )


def _is_single(layer: QuantModule, slot: WeightSlot) -> bool:
    stages = layer.quantizers()[slot.quantizer].stages()
    return len(stages) == 1 and stages[0].enabled and isinstance(stages[0], TensorQuantizer)
