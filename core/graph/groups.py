"""Groups of layers that read the same tensor: from the family map, from the dataflow probe, or both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from octavo.core.errors import PlanError
from octavo.core.graph.dataflow import InputRecorder
from octavo.core.model.description import ModelDescription

Groups = tuple[tuple[str, ...], ...]


def shared_input_groups(
    layers: Iterable[str], description: ModelDescription | None, probed: Sequence[tuple[str, ...]] | None
) -> Groups:
    """Return which of `layers` share an input.

    Args:
        layers: Names of the layers that matter (the ones that are quantized).
        description: The model's family map, or None.
        probed: Groups that a forward pass showed, or None when there was no pass.

    Raises:
        PlanError: map and probe disagree; both are shown.
    """
    kept = set(layers)
    seen = None if probed is None else _restricted(probed, kept)
    if description is None:
        return seen or ()
    declared = _restricted(description.same_input, kept)
    if seen is not None and set(declared) != set(seen):
        raise PlanError(
            f"the family map {description.family!r} and the model's own dataflow disagree on which layers read "
            f"the same tensor. Only in the map: {sorted(set(declared) - set(seen))}. "
            f"Only in the dataflow: {sorted(set(seen) - set(declared))}. Correct the map, or report the model"
        )
    return declared


def _restricted(groups: Iterable[tuple[str, ...]], kept: set[str]) -> Groups:
    restricted = (tuple(sorted(name for name in group if name in kept)) for group in groups)
    return tuple(sorted(group for group in restricted if len(group) > 1))


@torch.no_grad()
def probe(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]) -> InputRecorder:
    """Run `model(**inputs)` in eval mode and return what `layers` read; works on the meta device too."""
    training = {module for module in model.modules() if module.training}
    model.eval()
    try:
        with InputRecorder(layers) as recorder:
            model(**inputs)
    finally:
        for module in training:
            module.training = True
    return recorder
