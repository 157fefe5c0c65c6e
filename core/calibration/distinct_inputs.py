"""The distinct inputs of a model's quantized weights, and how many of them are looked at in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from octavo.core.calibration.calibration import Groups, first_readers, input_name
from octavo.core.calibration.part import Part
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.calibration.statistics.sizes import InputSize, passes_within
from octavo.core.modules import quantized_layers
from octavo.core.quantizers import TensorQuantizer


@dataclass(frozen=True)
class DistinctInput:
    """A tensor that weights are multiplied with.

    Attributes:
        quantizer: What shows it.
        size: Bytes of its statistics, under the quantizer's name.
        device: Where its weights are.
        readers: Names of the layers that read it.
    """

    quantizer: TensorQuantizer
    size: InputSize
    device: torch.device
    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the quantizer."""
        return self.size.name


@dataclass(frozen=True)
class Pass:
    """Inputs that one run of the data looks at, and the part of the model that is solved then."""

    inputs: tuple[DistinctInput, ...]
    part: Part

    def collectors(self, needs: Needs) -> dict[TensorQuantizer, StatisticsCollector]:
        """Return a collector for each input, by its quantizer."""
        return {i.quantizer: StatisticsCollector(i.name, needs) for i in self.inputs}


def passes(model: nn.Module, part: Part, groups: Groups, needs: Needs, budget: int | None) -> list[Pass]:
    """Divide a part of a quantized model into as few passes as the budget allows; None allows one.

    Layers of which no input is looked at belong to the first.

    Raises:
        CalibrationError: one input exceeds the budget alone; it is named.
    """
    if not needs.any_input:
        return [Pass((), part)]
    inputs = {found.name: found for found in _distinct_inputs(model, part, groups, needs)}
    divided = passes_within([found.size for found in inputs.values()], budget)
    if len(divided) == 1:
        return [Pass(tuple(inputs.values()), part)]
    chosen = [tuple(inputs[size.name] for size in sizes) for sizes in divided]
    readers = [frozenset(name for found in part for name in found.readers) for part in chosen]
    every = {name for name, _ in quantized_layers(model)}
    readers[0] = frozenset(every.difference(*readers[1:]))
    return [
        Pass(inputs, replace(part, layers=layers)) for inputs, layers in zip(chosen, readers, strict=True)
    ]


def _distinct_inputs(model: nn.Module, part: Part, groups: Groups, needs: Needs) -> Iterator[DistinctInput]:
    first = first_readers(groups)
    layers = {name: layer for name, layer in quantized_layers(model) if part.has(name)}
    readers: dict[str, list[str]] = {}
    for name, layer in layers.items():
        weights = layer.quantized_weights()
        for slot in layer.weight_slots():
            if slot.is_stacked or weights[slot.quantizer].dim() == 2:
                readers.setdefault(input_name(name, slot, first), []).append(name)
    for shown, names in readers.items():
        reader, _, quantizer = shown.rpartition(".")
        if reader in layers and quantizer in layers[reader].quantizer_names:
            stage = layers[reader].quantizers()[quantizer].stages()[0]
            weight = next(iter(layers[reader].quantized_weights().values()))
            shape: Sequence[int] = layers[reader].quantizer_shape(layers[reader], quantizer) or (
                weight.shape[-1],
            )
            size = InputSize.of(shown, shape[-1], needs, weight.element_size())
            yield DistinctInput(stage, size, weight.device, tuple(names))
