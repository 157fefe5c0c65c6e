"""One weight of a quantized model on its way into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.errors import ExportError, listed
from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.modules import QuantModule, WeightSlot
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
    def pre_quant_scale(self) -> Tensor | None:
        """What its input is multiplied with [in], in the weight's dtype, or None."""
        factor = self.layer.quantizers()[self.slot.inputs].stages()[0].pre_quant_scale
        return None if factor is None else factor.to(self.values.dtype)

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """The factors [rank, in] and [out, rank] of what is added to it, in its dtype, or None."""
        stage = self.layer.quantizers()[self.slot.quantizer].stages()[0]
        if stage.low_rank_down is None or stage.low_rank_up is None:
            return None
        dtype = self.values.dtype
        return stage.low_rank_down.to(dtype), stage.low_rank_up.to(dtype)

    @property
    def values(self) -> Tensor:
        """The weight as its quantizer sees it: times its `pre_quant_scale`."""
        weight = self.layer.quantized_weights()[self.slot.quantizer].detach()
        return self.layer.quantizers()[self.slot.quantizer].stages()[0].scaled(weight)

    def packed(
        self, layout: CheckpointLayout, errors: WeightErrors
    ) -> Iterator[tuple[str, PackedTensor, bool]]:
        """Yield (checkpoint name of the module, codes and scales, whether they are a segment of an expert's rows).

        Args:
            layout: Where the checkpoint has the weight.
            errors: Takes in how far the codes are from the values.

        Raises:
            ExportError: the checkpoint holds stacked weights in one tensor, or scales do not divide among segments.
        """
        stage = self.layer.quantizers()[self.slot.quantizer].stages()[0]
        weight, state, spec = self.values, stage.state_tensors(), self.spec
        if not self.slot.is_stacked:
            packed = PackedTensor.pack(weight, state, spec)
            stored = packed if self.then is None else self._chain(packed, self.then)
            errors.add(self.name, weight, stored.dequantize(torch.float32))
            yield layout.names[self.name].removesuffix(".weight"), packed, False
            return
        for index, names in enumerate(layout.parts[self.name]):
            packed = PackedTensor.pack(weight[index], [tensor[index] for tensor in state], spec)
            errors.add(self.name, weight[index], packed.dequantize(torch.float32))
            for segment, name in enumerate(names):
                yield name.removesuffix(".weight"), self._segment(packed, segment, len(names)), len(names) > 1

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


def check_layout(weights: Mapping[str, StoredWeight], layout: CheckpointLayout) -> None:
    """Refuse stacked weights that a checkpoint holds in one tensor.

    Raises:
        ExportError: there are such; they are named.
    """
    whole = [name for name, weight in weights.items() if weight.slot.is_stacked and name not in layout.parts]
    if whole:
        raise ExportError(
            f"checkpoints of this model hold the experts of {listed(whole, 2)} in one tensor, for which there is no "
            "quantized form; leave the experts out ({'quantizer_name': '*.experts.*', 'enable': False})"
        )
