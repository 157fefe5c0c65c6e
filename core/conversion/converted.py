"""A read checkpoint, in another dialect's numbers, as what a checkpoint is written from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from octavo.core.conversion.change import Change, change_of, relative_change
from octavo.core.conversion.joined_inputs import joined_inputs
from octavo.core.conversion.numbers import in_dialect
from octavo.core.conversion.survey import Survey, SurveyedWeight, layer_name
from octavo.core.errors import UnsupportedError
from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_source import PackedWeight
from octavo.core.model.exporter import (
    Dialect,
    InputDialect,
    InputState,
    JoiningDialect,
    LayerFormat,
    NamedCheckpoint,
    QuantizedCheckpoint,
)
from octavo.core.model.fused import experts_by_name, joined_by_name
from octavo.core.model.stored_weight import part_name
from octavo.core.packed import PackedAffine, PackedChain, PackedTensor


class ConvertedCheckpoint:
    """See `core.model.checkpoint_source.NamedSource`.

    Attributes:
        changes: What the dialect cannot hold exactly, of the tensors that were handed out so far.
        num_codes: Number of codes that were handed out.

    Args:
        checkpoint: What is read.
        survey: What it holds.
        dialect: Whose numbers it gets.
    """

    def __init__(self, checkpoint: QuantizedCheckpoint, survey: Survey, dialect: Dialect) -> None:
        self._checkpoint = checkpoint
        self._survey = survey
        self._dialect = dialect
        self.changes: list[Change] = []
        self.num_codes = 0
        self.dtype = checkpoint.dtype
        self.names: Collection[str] = survey.names
        self.excluded = survey.excluded
        self.modules = survey.modules
        self.cache = survey.cache
        self.folded: set[str] = set()
        self._specs = {name: _stored_spec(weight, dialect) for name, weight in survey.weights.items()}
        self.layers: dict[str, LayerFormat] = {
            name: replace(
                weight.layer,
                weight=self._specs[name].unstacked(),
                inputs=None if weight.layer.inputs is None else self._input_spec(weight.layer.inputs),
            )
            for name, weight in survey.weights.items()
        }
        self._groups = self._joined_layers()
        self._shared = self._shared_states()
        activations = survey.activations
        if isinstance(dialect, JoiningDialect):
            groups = [*self._groups, *experts_by_name(self._specs)]
            activations = joined_inputs(activations, groups)
        self._inputs = {name: self._recovered(name, state) for name, state in activations.items()}
        self._caches = {name: self._recovered(name, state) for name, state in survey.caches.items()}

    def tensors(self) -> Iterator[PackedWeight | tuple[str, Tensor]]:
        """Yield every tensor in the order of the checkpoint that is read; one is in memory at a time."""
        for name, value in self._checkpoint.tensors():
            found = self._converted(name, value)
            yield (name, found) if isinstance(found, Tensor) else found

    def tensor(self, name: str) -> PackedWeight | Tensor:
        """Return one tensor, read for this call."""
        if not isinstance(self._checkpoint, NamedCheckpoint):
            raise UnsupportedError(
                f"tensors of {self._checkpoint.directory} are read in their order only, and this dialect needs them in "
                "another one; its reader has no method `tensor`. Convert it to unified_hf first"
            )
        return self._converted(name, self._checkpoint.tensor(name))

    def inputs(self, layer: str) -> InputState | None:
        """Return what is done to the input of a quantized layer, or None for nothing."""
        is_stack = layer in self._survey.weights and self._survey.weights[layer].spec.is_stacked
        return self._inputs.get(part_name(layer, "input_quantizer", is_stack))

    def cache_states(self) -> Mapping[str, InputState]:
        """Return what quantizes keys and values; only where there are scales."""
        return self._caches

    def _converted(
        self, name: str, value: Tensor | PackedTensor | PackedChain | PackedAffine
    ) -> PackedWeight | Tensor:
        if isinstance(value, (PackedTensor, PackedChain)):
            return self._weight(layer_name(name), value)
        assert isinstance(value, Tensor)  # noqa: S101 (the survey refuses codes with zero points)
        return value

    def _weight(self, name: str, value: PackedTensor | PackedChain) -> PackedWeight:
        before = value.first if isinstance(value, PackedChain) else value
        after = in_dialect(before, self._specs[name], self._dialect, self._shared.get(name, {}))
        self.num_codes += math.prod(before.shape)
        if after.payload is not before.payload:
            self.changes.append(change_of(f"{name}.weight", before, after))
        is_stack = before.spec.is_stacked
        correction = self._inputs.get(part_name(name, "weight_quantizer", is_stack))
        return PackedWeight(
            name,
            replace(value, first=after) if isinstance(value, PackedChain) else after,
            self.inputs(name),
            None if correction is None else correction.low_rank,
        )

    def _joined_layers(self) -> list[tuple[str, ...]]:
        """Return the groups of layers that have one scale where they share any."""
        groups = joined_by_name(self._specs)
        if not isinstance(self._dialect, JoiningDialect):
            return groups
        joins = self._dialect.joins
        return [group for group in groups if joins(group, [self.layers[name] for name in group])]

    def _shared_states(self) -> dict[str, dict[str, Tensor]]:
        """Return the state that each of the layers which engines join shares with the others."""
        shared: dict[str, dict[str, Tensor]] = {}
        for group in self._groups:
            weights = [self._survey.weights[name] for name in group]
            specs = [self._specs[name] for name in group]
            if len({(weight.layer, spec) for weight, spec in zip(weights, specs, strict=True)}) > 1:
                continue
            if weights[0].layer.then is not None:
                continue  # of formats in turn engines keep one of the last scales, which stays as it is
            names = self._dialect.shared_state(specs, [weight.shape for weight in weights])
            largest = {
                part: torch.stack([weight.scale[part] for weight in weights]).amax(0)
                for part in names
                if all(part in weight.scale for weight in weights)
            }
            shared |= dict.fromkeys(group, largest)
        return shared

    def _input_spec(self, spec: QuantSpec) -> QuantSpec:
        return self._dialect.input_spec(spec) if isinstance(self._dialect, InputDialect) else spec

    def _recovered(self, name: str, found: InputState) -> InputState:
        """Return what quantizes an activation, with the format and the scale that a reader of the dialect recovers.

        How far that is from the checkpoint that is read is noted.
        """
        if found.spec is None:
            return found
        spec = self._input_spec(found.spec) if name.endswith("input_quantizer") else found.spec
        if spec != found.spec:
            self.changes.append(Change(name, 0.0, 0.0, 0.0, rule=f"{spec}, not {found.spec}"))
            found = replace(found, spec=spec)
        if not found.state:
            return found
        state = self._dialect.activation_state(name.rpartition(".")[2], spec, found.state)
        stored = self._survey.activations.get(name, found).state
        moved = [relative_change(tensor, state[part]) for part, tensor in stored.items()]
        if any(moved):
            self.changes.append(Change(name, 0.0, 0.0, max(moved)))
        return replace(found, state=state)


def _stored_spec(weight: SurveyedWeight, dialect: Dialect) -> QuantSpec:
    then = () if weight.layer.then is None else (weight.layer.then,)
    spec = dialect.weight_spec(weight.spec, weight.layer.inputs, *then)
    return spec.stacked() if weight.spec.is_stacked and not spec.is_stacked else spec
