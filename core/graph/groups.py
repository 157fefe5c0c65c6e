"""Groups of layers that read the same tensor: from the family map, from the dataflow probe, or both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from octavo.core.errors import FOREIGN_FAILURES, PlanError
from octavo.core.graph.dataflow import InputRecorder
from octavo.core.graph.evaluating import evaluating
from octavo.core.model.description import ModelDescription
from octavo.core.model.sharded import reshard

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
    with evaluating(model), InputRecorder(layers) as recorder:
        model(**inputs)
    reshard(model)
    return recorder


def probe_or_note(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> tuple[InputRecorder | None, str]:
    """Return (what `probe` returns, ""), or (None, a sentence that says why the model does not run)."""
    try:
        return probe(model, layers, inputs), ""
    except torch.OutOfMemoryError:  # says nothing about the model, and whatever follows would fail, too
        raise
    except FOREIGN_FAILURES as error:
        lines = [type(error).__name__, *str(error).splitlines()]
        return None, f"the dataflow probe could not run ({': '.join(lines[:2])})"
