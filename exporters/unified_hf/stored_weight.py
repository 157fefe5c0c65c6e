"""One weight of a quantized model as this dialect stores it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from octavo.core.errors import ExportError
from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_layout import Parts, row_segment
from octavo.core.modules import QuantModule, WeightSlot
from octavo.core.packed import PackedTensor
from octavo.exporters.unified_hf.activation_scales import divisor_of, scale_from_state
from octavo.exporters.unified_hf.schemes import Scheme
from octavo.exporters.unified_hf.spelling import spell


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight and its scheme.

    Attributes:
        layer_name: Its layer's name in the model.
        layer: The layer.
        slot: Which of the layer's parameters.
        scheme: The dialect's format.
    """

    layer_name: str
    layer: QuantModule
    slot: WeightSlot
    scheme: Scheme

    @property
    def name(self) -> str:
        """The parameter's name in the model."""
        return f"{self.layer_name}.{self.slot.parameter}".removeprefix(".")

    @property
    def spec(self) -> QuantSpec:
        """Format of the weight; of each, where it is a stack."""
        spec = self.layer.quantizers()[self.slot.quantizer].stages()[0].spec
        assert spec is not None  # noqa: S101 (it has a scheme)
        return spec.unstacked()

    def tensors(self, checkpoint_name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a weight that is stored whole, under names that extend its module's."""
        weight, state = self._weight(), self._state()
        yield from self._named(checkpoint_name, spell(PackedTensor.pack(weight, state, self.spec)))

    def parts(self, parts: Parts) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a stack that is stored apart.

        The row segments of one expert share what the expert has once: scales per tensor, and second-level ones.

        Raises:
            ExportError: scales do not divide among the segments.
        """
        weight, state = self._weight(), self._state()
        for index, names in enumerate(parts):
            spelled = spell(PackedTensor.pack(weight[index], [tensor[index] for tensor in state], self.spec))
            for segment, name in enumerate(names):
                self._check_segments(spelled, len(names))
                part = {suffix: row_segment(t, segment, len(names)) for suffix, t in spelled.items()}
                yield from self._named(name, part)

    def input_scale(self) -> Tensor | None:
        """Return the fp32 [] scale of its input, or None where that is off or dynamic."""
        return activation_scale(self.layer, self.slot.inputs)

    def _weight(self) -> Tensor:
        return self.layer.quantized_weights()[self.slot.quantizer].detach()

    def _state(self) -> list[Tensor]:
        (stage,) = self.layer.quantizers()[self.slot.quantizer].stages()
        return stage.state_tensors()

    def _named(self, checkpoint_name: str, spelled: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        base = checkpoint_name.removesuffix(".weight")
        for suffix, tensor in spelled.items():
            yield f"{base}.{suffix}", tensor.contiguous()
        scale = self.input_scale()
        if scale is not None:
            yield f"{base}.input_scale", scale

    def _check_segments(self, spelled: dict[str, Tensor], num_segments: int) -> None:
        for suffix, tensor in spelled.items():
            if tensor.dim() and tensor.shape[0] % num_segments:
                raise ExportError(
                    f"{self.name} holds {num_segments} projections, and the {tensor.shape[0]} rows of its {suffix} "
                    f"({self.spec}) do not divide among them; leave it out, or use another block"
                )


def activation_scale(layer: QuantModule, quantizer_name: str) -> Tensor | None:
    """Return the fp32 [] scale of an activation quantizer that is on and static, else None."""
    stage = layer.quantizers()[quantizer_name].stages()[0]
    if not stage.enabled or stage.spec is None or not stage.spec.state:
        return None
    return scale_from_state(stage.named_state(), divisor_of(quantizer_name, stage.spec))
