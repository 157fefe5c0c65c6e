"""The dialect's numbers: how stored weights round, and which scales layers share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.formats import PerBlock, PerTensor, QuantSpec
from octavo.core.model.exporter import LayerFormat, LinearFold, SmoothingFolds
from octavo.core.modules import QuantAttention, QuantModule
from octavo.exporters.unified_hf.activation_scales import divisor_of, scale_from_state, state_from_scale
from octavo.exporters.unified_hf.caches import stored_quantizers
from octavo.exporters.unified_hf.schemes import scheme_for
from octavo.exporters.unified_hf.targets import keeps_one_scale

FOLDED_LINEARS = (  # the peer's own list, by which it folds NVFP4_AWQ's factors
    LinearFold(("LlamaAttention", "Qwen3Attention", "Qwen3MoeAttention"), "v_proj", "o_proj"),
    LinearFold(("LlamaMLP", "Qwen3MLP", "Qwen3MoeMLP"), "up_proj", "down_proj"),
)


class UnifiedHfDialect:
    """The numbers of ModelOpt's checkpoints, reproduced byte for byte.

    Args:
        target: An engine. Layers that it joins then share the scales that it keeps one of, which the peer's do
            not: it would round such weights a second time.
    """

    name = "unified_hf"

    def __init__(self, target: str | None = None) -> None:
        self._keeps_one_scale = target is not None and keeps_one_scale(target)
        if target is not None:
            self.name = f"unified_hf for {target}"

    def weight_spec(
        self, weight: QuantSpec, inputs: QuantSpec | None, then: QuantSpec | None = None
    ) -> QuantSpec:
        """Return the format in which a weight calibrated as `weight` is stored.

        A format that the dialect cannot store is returned as it is; the exporter refuses it by name.
        """
        scheme = scheme_for(LayerFormat(weight.unstacked(), inputs, then))
        return weight if scheme is None else scheme.stored_weight(weight)

    def weight_state(
        self, spec: QuantSpec, state: dict[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return `state`: scales are stored in fp32."""
        return state

    def shared_state(self, weights: Sequence[QuantSpec], shapes: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Return what the weights of layers with a common input share.

        Second-level scales, since engines fuse such layers and keep one of them. Square blocks too, where every
        weight is a single block: the peer sees those scales as per-tensor ones. For a target that keeps one
        scale of such layers, per-tensor ones. Weights in one tensor share both.
        """
        if weights[0].global_max is not None:
            return ("global_amax",)
        granularity = weights[0].unstacked().granularity
        if weights[0].is_stacked:
            return ("amax",) if isinstance(granularity, PerTensor) and not weights[0].dynamic else ()
        if isinstance(granularity, PerTensor):
            return ("amax",) if self._keeps_one_scale and not weights[0].dynamic else ()
        if isinstance(granularity, PerBlock) and len(granularity.sizes) == 2:
            single = all(set(granularity.scale_shape(shape)) == {1} for shape in shapes)
            return ("amax",) if single else ()
        return ()

    def smoothing_folds(self, layer: LayerFormat) -> SmoothingFolds:
        """Return into what the peer folds factors on inputs: norms for AWQ's formats, NVFP4's into layers, too."""
        scheme = scheme_for(layer)
        if scheme is None:
            return SmoothingFolds()
        return SmoothingFolds(scheme.folds_norms, FOLDED_LINEARS if scheme.folds_linears else ())

    def has_place_for(self, layer: QuantModule, quantizer: str) -> bool:
        """Whether checkpoints hold what `quantizer` of `layer` does.

        They hold weights, inputs of layers with such weights, keys and values: no outputs, no queries, no softmax
        outputs, nothing of norms and poolings, and no rotations: keys and values of layers that rotate have none.
        """
        if isinstance(layer, QuantAttention):
            return quantizer in stored_quantizers(layer)
        return bool(layer.quantized_weights()) and quantizer != "output_quantizer"

    def activation_state(
        self, quantizer: str, spec: QuantSpec, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state that a reader recovers from the stored scale: it differs in the last bit at most."""
        divisor = divisor_of(quantizer, spec)
        return state_from_scale(scale_from_state(state, divisor), spec, divisor)
