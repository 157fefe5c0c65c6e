"""One weight of a quantized model on its way into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.core.errors import ExportError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_source import PackedWeight
from octavo.core.model.exporter import InputState
from octavo.core.model.sharded import is_zero, whole_shape
from octavo.core.modules import PackedParameter, QuantExperts, QuantModule, WeightSlot
from octavo.core.packed import PackedChain, PackedTensor
from octavo.core.quantizers import TensorQuantizer
from octavo.core.report.weight_error import WeightErrors


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight.

    Attributes:
        layer_name: Its layer's name in the model.
        layer: The layer.
        slot: Which of the layer's parameters.
    """

    layer_name: str
    layer: QuantModule
    slot: WeightSlot

    @property
    def name(self) -> str:
        """The parameter's name in the model."""
        return f"{self.layer_name}.{self.slot.parameter}".removeprefix(".")

    @property
    def spec(self) -> QuantSpec:
        """Format of the weight; of each, where it is a stack."""
        spec = self.layer.quantizers()[self.slot.quantizer].stages()[0].spec
        assert spec is not None  # noqa: S101 (the exporter has found a name for it)
        return spec.unstacked()

    @property
    def then(self) -> TensorQuantizer | None:
        """The quantizer that rounds the rounded weight once more, or None."""
        stages = self.layer.quantizers()[self.slot.quantizer].stages()
        return stages[1] if len(stages) > 1 else None

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """The factors [rank, in] and [out, rank] of what is added to it, fp32, or None."""
        stage = self.layer.quantizers()[self.slot.quantizer].stages()[0]
        if stage.low_rank_down is None or stage.low_rank_up is None:
            return None
        return stage.low_rank_down, stage.low_rank_up

    @property
    def held(self) -> PackedParameter | None:
        """Codes and scales, where the layer holds the weight packed."""
        found = self.layer.held(self.slot.parameter)
        return found if isinstance(found, PackedParameter) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as its quantizer sees it, also where ranks have parts of it."""
        if self.held is not None:
            return self.held.shape
        if is_zero(parameter := self.layer.get_parameter(self.slot.parameter)):
            shape = whole_shape(parameter)
            return shape[::-1] if self.layer.weight_is_transposed else shape
        return tuple(self.layer.quantized_weights()[self.slot.quantizer].shape)

    @property
    def values(self) -> Tensor:
        """The weight as its quantizer sees it: times its `pre_quant_scale`. Packed ones have their values no more."""
        weight = self.layer.quantized_weights()[self.slot.quantizer].detach()
        return self.layer.quantizers()[self.slot.quantizer].stages()[0].scaled(weight)

    @property
    def is_in_one_tensor(self) -> bool:
        """Whether the weight is a stack that checkpoints hold in one tensor."""
        return isinstance(self.layer, QuantExperts) and self.layer.is_in_one_tensor(self.layer)

    def names(self) -> list[str]:
        """Return the parameter's name, or those of the weights that it stacks: `experts.down_proj[3]`."""
        if not self.slot.is_stacked:
            return [self.name]
        return [f"{self.name}[{index}]" for index in range(self.shape[0])]

    def codes(self, values: Tensor | None, index: int | None = None) -> PackedTensor:
        """Return codes and scales of the weight, or of one of a stack.

        Args:
            values: `self.values`, or None where the layer holds codes.
            index: Which of a stack, or None for all of it.
        """
        if values is None:
            assert self.held is not None  # noqa: S101 (else there are values)
            held = self.held.tensor()
            return held if index is None else held.one_of_stack(index)
        state = self.layer.quantizers()[self.slot.quantizer].stages()[0].state_tensors()
        if index is None:
            return PackedTensor.pack(
                values, state, self.spec.stacked() if self.slot.is_stacked else self.spec
            )
        return PackedTensor.pack(values[index], [tensor[index] for tensor in state], self.spec)

    def packed(self, layout: CheckpointLayout, errors: WeightErrors) -> Iterator[PackedWeight]:
        """Yield the weight, or each part of it that the checkpoint has.

        A stack that is in one tensor keeps the parameter's name, and has a stacked format.

        Args:
            layout: Where the checkpoint has the weight.
            errors: Takes in how far the codes are from the values.

        Raises:
            ExportError: scales do not divide among segments.
        """
        values = self.values if self.held is None else None
        beside = (input_state(self.layer, self.slot.inputs), self.low_rank)
        if self.name in layout.names:
            packed = self.codes(values)
            stored = packed if self.then is None else self._chain(packed, self.then)
            self._add_error(errors, values, stored)
            yield PackedWeight(layout.names[self.name].removesuffix(".weight"), stored, *beside)
            return
        for index, names in enumerate(layout.parts[self.name]):
            packed = self.codes(values, index)
            self._add_error(errors, values, packed, index)
            for segment, name in enumerate(names):
                part = self._segment(packed, segment, len(names))
                yield PackedWeight(name.removesuffix(".weight"), part, *beside, is_segment=len(names) > 1)

    def _add_error(
        self,
        errors: WeightErrors,
        values: Tensor | None,
        stored: PackedTensor | PackedChain,
        index: int | None = None,
    ) -> None:
        """Tell `errors` how far codes are from values; where these are gone, what was noted when they were packed."""
        name = self.name if index is None else f"{self.name}[{index}]"
        if values is not None:
            exact = values if index is None else values[index]
            errors.add(name, exact, stored)
        elif self.held is not None:
            errors.sqnr[name] = self.held.sqnr[index or 0]

    def _chain(self, packed: PackedTensor, then: TensorQuantizer) -> PackedChain:
        assert then.spec is not None  # noqa: S101 (the exporter has found a name for it)
        return PackedChain(packed, then.spec, tuple(then.state_tensors()))

    def _segment(self, packed: PackedTensor, segment: int, num_segments: int) -> PackedTensor:
        """Return one of an expert's row segments; they share what the expert has once."""
        found = packed.row_segment(segment, num_segments)
        if found is None:
            raise ExportError(
                f"{self.name} holds {num_segments} projections of {packed.shape[0] // num_segments} rows, which are no "
                f"whole blocks of {self.spec}; leave it out, or use another block"
            )
        return found


def input_state(layer: QuantModule, quantizer: str) -> InputState | None:
    """Return what an activation's quantizer does, or None when it does nothing."""
    stage = layer.quantizers()[quantizer].stages()[0]
    spec = stage.spec if stage.enabled else None
    if spec is None and stage.pre_quant_scale is None:
        return None
    state = stage.named_state() if spec is not None else {}
    return InputState(spec, state, stage.pre_quant_scale, bias=stage.bias, bias_value=stage.bias_value)


def check_layout(weights: Mapping[str, StoredWeight], layout: CheckpointLayout, stores_stacks: bool) -> None:
    """Refuse stacked weights that a checkpoint holds in one tensor, where the dialect has no form for it.

    Raises:
        ExportError: there are such; they are named.
    """
    stacked = [name for name, weight in weights.items() if weight.slot.is_stacked and name in layout.names]
    whole = [name for name in stacked if not (stores_stacks and weights[name].is_in_one_tensor)]
    if whole:
        raise ExportError(
            f"checkpoints of this model hold the experts of {listed(whole, 2)} in one tensor, for which there is no "
            "quantized form; leave the experts out ({'quantizer_name': '*.experts.*', 'enable': False})"
        )


def part_name(base: str, suffix: str, is_stack: bool) -> str:
    """Return the name of a weight's part: `a.b.weight_scale`, or `a.stack_weight_scale` beside the codes `a.stack`."""
    if not is_stack:
        return f"{base}.{suffix}"
    return base if suffix == "weight" else f"{base}_{suffix}"
