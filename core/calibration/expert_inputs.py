"""Statistics of what experts read: gathered for each one, and what takes their place where it saw few tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from octavo.core.calibration.expert_rules import ExpertRules
from octavo.core.calibration.experts import EXPERT
from octavo.core.calibration.part import Part
from octavo.core.calibration.statistics import InputStatistics, Needs
from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.modules import QuantExperts, QuantModule, quantized_layers


@contextmanager
def watching_experts(model: nn.Module, part: Part, needs: Needs) -> Iterator[dict[str, InputStatistics]]:
    """Gather statistics of each expert's inputs for the time of a context; its value holds them when it ends.

    Yields:
        {name of the input's quantizer and the expert's index: statistics}:
        `model.layers.0.mlp.experts.down_proj_input_quantizer[3]`.
    """
    found: dict[str, InputStatistics] = {}
    watchers = {
        layer: _Watcher(name, layer, needs)
        for name, layer in quantized_layers(model)
        if isinstance(layer, QuantExperts) and part.has(name)
    }
    try:
        for layer, watcher in watchers.items():
            layer.watcher = watcher.see
        yield found
    finally:
        for layer, watcher in watchers.items():
            layer.watcher = None
            found.update(
                {c.name: c.statistics for c in watcher.collectors.values() if c.statistics is not None}
            )


@dataclass(frozen=True)
class ExpertInput:
    """What is known of the input of a weight.

    Attributes:
        statistics: To solve the weight with.
        fallback: What takes the place of its own statistics, and why; None where nothing does.
        is_solved: False for a weight that keeps the scales of `max`.
    """

    statistics: InputStatistics | None
    fallback: str | None = None
    is_solved: bool = True


class ExpertInputs:
    """Chooses statistics for weights, those of experts by the rules.

    Args:
        statistics: Of inputs, by the name of their quantizer; empty where no algorithm asks for any.
        rules: What to do with experts that saw few tokens.
    """

    def __init__(self, statistics: Mapping[str, InputStatistics], rules: ExpertRules) -> None:
        self._statistics = statistics
        self._rules = rules
        self._merged: dict[tuple[str, str], InputStatistics | None] = {}

    def of_stacked(self, inputs: str, index: int, layer: QuantModule) -> ExpertInput:
        """Return what is known of the input of expert `index`; `inputs` is the name of the input's quantizer."""
        shared = self._statistics.get(inputs)
        if shared is None or not self._rules.own:
            return ExpertInput(shared)
        own = self._statistics.get(f"{inputs}[{index}]")
        chosen = layer.tokens_per_expert if isinstance(layer, QuantExperts) else None
        if not self._rules.all_experts or chosen is None:
            return self._own_unless_starved(own, shared)
        tokens, own = int(chosen[index]), own or shared
        starved = tokens < self._rules.min_tokens
        return ExpertInput(own, f"{self._why(tokens)}: every token was shown to it" if starved else None)

    def of_layer(self, inputs: str) -> ExpertInput:
        """Return what is known of the input of a layer, which may be an expert's."""
        own, match = self._statistics.get(inputs), EXPERT.fullmatch(inputs)
        if match is None or not self._statistics:
            return ExpertInput(own)
        return self._own_unless_starved(own, self._of_all(match["experts"], match["own"]))

    def _own_unless_starved(self, own: InputStatistics | None, shared: InputStatistics | None) -> ExpertInput:
        tokens = 0 if own is None else own.num_tokens
        if own is not None and tokens >= self._rules.min_tokens:
            return ExpertInput(own)
        if shared is None or self._rules.weight_only:
            return ExpertInput(None, f"{self._why(tokens)}: rounded to nearest", is_solved=False)
        return ExpertInput(shared, f"{self._why(tokens)}: solved with the inputs of all experts")

    def _why(self, tokens: int) -> str:
        return f"{tokens} tokens, fewer than {self._rules.min_tokens}"

    def _of_all(self, experts: str, own: str) -> InputStatistics | None:
        """Return the statistics of this layer of all experts together."""
        if (experts, own) not in self._merged:
            pattern = re.compile(rf"{re.escape(experts)}\.\d+\.{re.escape(own)}")
            found = [known for name, known in self._statistics.items() if pattern.fullmatch(name)]
            self._merged[experts, own] = _together(found) if found else None
        return self._merged[experts, own]


class _Watcher:
    """A collector for each expert and input of a layer, made when the expert first reads something."""

    def __init__(self, name: str, layer: QuantExperts, needs: Needs) -> None:
        self.collectors: dict[tuple[str, int], StatisticsCollector] = {}
        self._name = name
        self._layer = layer
        self._needs = needs

    def see(self, inputs: str, expert: int, x: Tensor) -> None:
        """Take in what `expert` reads at the quantizer `inputs`, [tokens, in]."""
        if (inputs, expert) not in self.collectors:
            name = f"{self._name}.{inputs}[{expert}]".removeprefix(".")
            self.collectors[inputs, expert] = StatisticsCollector(name, self._needs)
        self.collectors[inputs, expert].collect(self._layer.quantizers()[inputs].stages()[0], x)


def _together(found: list[InputStatistics]) -> InputStatistics:
    first = found[0]
    merged = InputStatistics(first.num_channels, first.needs, first.amax.device)
    for known in found:
        merged.merge(known)
    return merged
