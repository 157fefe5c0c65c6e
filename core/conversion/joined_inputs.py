"""What is done to the input of layers that a dialect's checkpoints hold as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from octavo.core.errors import ExportError, listed
from octavo.core.model.exporter import InputState


def joined_inputs(states: Mapping[str, InputState], groups: Iterable[Sequence[str]]) -> dict[str, InputState]:
    """Return `states` where the layers of each group have the largest of their input's scales.

    Args:
        states: What quantizes activations, by the quantizer's full name.
        groups: Layers that become one.

    Raises:
        ExportError: their inputs are multiplied with different factors, or some with none.
    """
    joined = dict(states)
    for group in groups:
        names = [f"{layer}.input_quantizer" for layer in group]
        found = {name: states[name] for name in names if name in states}
        _check_factors(group, list(map(states.get, names)))
        if len({state.spec for state in found.values()}) != 1:
            continue  # plain inputs; layers of several formats are refused by name elsewhere
        largest = {
            part: torch.stack([state.state[part] for state in found.values()]).amax(0)
            for part in next(iter(found.values())).state
        }
        joined |= {name: replace(state, state=largest) for name, state in found.items()}
    return joined


def _check_factors(group: Sequence[str], states: Sequence[InputState | None]) -> None:
    factors = [None if state is None else state.pre_quant_scale for state in states]
    first = factors[0]
    for factor in factors[1:]:
        is_same = factor is first if factor is None or first is None else torch.equal(factor, first)
        if not is_same:
            raise ExportError(
                f"the dialect holds {listed(list(group))} as one layer, whose input has one factor for each channel "
                "(pre_quant_scale); found different ones. Export the model in this dialect instead"
            )
