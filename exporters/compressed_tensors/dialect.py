"""The dialect's numbers: scales as readers hold them, rounded before weights are divided by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.formats.scales import SMALLEST_AMAX
from octavo.core.model.activation_scales import CACHE_QUANTIZERS, scale_from_state, state_from_scale
from octavo.core.model.exporter import LayerFormat, SmoothingFolds
from octavo.core.modules import QuantAttention, QuantModule
from octavo.exporters.compressed_tensors.divisors import stored_maximum
from octavo.exporters.compressed_tensors.strategies import as_input


class CompressedTensorsDialect:
    """The numbers of compressed-tensors; there are no bytes of a peer to equal."""

    name = "compressed_tensors"

    def weight_spec(
        self, weight: QuantSpec, inputs: QuantSpec | None, then: QuantSpec | None = None
    ) -> QuantSpec:
        """Return the format in which a weight calibrated as `weight` is stored."""
        return weight if weight.scale == "e8m0" else replace(weight, arithmetic="divide")

    def input_spec(self, spec: QuantSpec) -> QuantSpec:
        """Return the format in which readers round an input; see `strategies.as_input`."""
        return as_input(spec)

    def weight_state(
        self, spec: QuantSpec, state: dict[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the state of a weight whose scales fit the model's `dtype`, in which engines hold them.

        Second-level scales are fp32, and such as their stored reciprocals give back.
        """
        if spec.global_max is not None and state:
            return {**state, "global_amax": stored_maximum(state["global_amax"], spec.global_max)}
        if not state or spec.scale == "e8m0" or dtype == torch.float32:
            return state
        largest = spec.element_type.max
        scale = torch.where(state["amax"].abs() < SMALLEST_AMAX, 1.0, state["amax"] / largest).to(dtype)
        magnitude = scale.abs().clamp_min(torch.finfo(dtype).smallest_normal).float()
        return {"amax": torch.copysign(magnitude * largest, scale)}

    def shared_state(self, weights: Sequence[QuantSpec], shapes: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Return what weights of layers with a common input share: engines keep one per-tensor scale of them."""
        if weights[0].global_max is not None:
            return ("global_amax",)
        return ("amax",) if isinstance(weights[0].granularity, PerTensor) and not weights[0].dynamic else ()

    def smoothing_folds(self, layer: LayerFormat) -> SmoothingFolds:
        """Return that factors on inputs are folded into norms: there is no place for them elsewhere."""
        return SmoothingFolds(norms=True)

    def has_place_for(self, layer: QuantModule, quantizer: str) -> bool:
        """Whether checkpoints hold what `quantizer` of `layer` does, or it is refused: no outputs, no queries."""
        if isinstance(layer, QuantAttention):
            return quantizer in CACHE_QUANTIZERS
        return bool(layer.quantized_weights()) and quantizer != "output_quantizer"

    def activation_state(
        self, quantizer: str, spec: QuantSpec, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state that a reader recovers from the stored scale: it differs in the last bit at most."""
        if spec.global_max is not None:
            return {"global_amax": stored_maximum(state["global_amax"], spec.global_max)}
        return state_from_scale(scale_from_state(state, spec.element_type.max), spec, spec.element_type.max)
