"""What the statistics of a config's algorithm will take, and whether they fit a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.statistics.sizes import InputSize, passes_within
from octavo.core.errors import CalibrationError, UnsupportedError
from octavo.core.graph.groups import Groups
from octavo.core.plan.settings import LayerSetting


def statistics_sizes(layers: Sequence[LayerSetting], groups: Groups, algorithm: Any) -> tuple[InputSize, ...]:
    """Return the bytes of each distinct input of `layers`, the quantized ones, that the algorithm looks at, if any."""
    needs = _needs(algorithm)
    if not needs.any_input:
        return ()
    first = {name: group[0] for group in groups for name in group}
    sizes: dict[str, InputSize] = {}
    for layer in layers:
        for slot in layer.site.quantized.weight_slots():
            if slot.inputs not in layer.site.quantized.quantizer_names:  # an embedding reads indices
                continue
            weight = getattr(layer.site.layer, slot.parameter)
            shape = layer.site.quantized.quantizer_shape(layer.site.layer, slot.inputs)
            if shape and shape[-1] and (slot.is_stacked or weight.dim() == 2):
                name = f"{first.get(layer.site.name, layer.site.name)}.{slot.inputs}".removeprefix(".")
                sizes.setdefault(name, InputSize.of(name, shape[-1], needs, weight.element_size()))
    return tuple(sizes.values())


def budget_problems(sizes: Sequence[InputSize], budget: int | None) -> Iterator[str]:
    """Yield an error where one input exceeds the budget alone."""
    try:
        passes_within(sizes, budget)
    except CalibrationError as error:
        yield str(error)


def _needs(algorithm: Any) -> Needs:
    needs = Needs()
    try:
        for part in algorithms_of(algorithm):
            needs = needs | part.needs()
    except UnsupportedError:  # the plan has an error that says so
        return Needs()
    return needs
