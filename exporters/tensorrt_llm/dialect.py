"""The dialect's numbers: how stored weights round, and which scales joined layers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.model.activation_scales import largest_value, scale_from_state, state_from_scale
from octavo.core.model.exporter import LayerFormat, SmoothingFolds
from octavo.core.model.fused import ATTENTION_ROLES, GATED_ROLES, QUERY_NAMES, fused_groups
from octavo.core.modules import QuantAttention, QuantModule, WeightSlot, quantized_layers
from octavo.core.plugins import plugins
from octavo.exporters.tensorrt_llm.caches import CACHE_QUANTIZERS, SMALLEST_FP8_SCALE, is_fp8_cache
from octavo.exporters.tensorrt_llm.formats import format_for
from octavo.exporters.tensorrt_llm.joined import EXPERTS


class TensorRtLlmDialect:
    """The numbers of ModelOpt's TensorRT-LLM checkpoints, reproduced byte for byte.

    Args:
        target: The engine builder (`trtllm`), or None: the numbers are the same.
    """

    name = "tensorrt_llm"

    def __init__(self, target: str | None = None) -> None:
        if target is not None:
            self.name = f"tensorrt_llm for {target}"

    def weight_spec(
        self, weight: QuantSpec, inputs: QuantSpec | None, then: QuantSpec | None = None
    ) -> QuantSpec:
        """Return the format in which a weight calibrated as `weight` is stored; the exporter refuses unknown ones."""
        known = format_for(LayerFormat(weight.unstacked(), inputs, then))
        return weight if known is None else known.stored_weight(weight)

    def weight_state(
        self, spec: QuantSpec, state: dict[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return `state`: scales are stored in fp32."""
        return state

    def groups(self, model: nn.Module, groups: Iterable[Iterable[str]]) -> list[tuple[str, ...]]:
        """Return the layers that are one in these checkpoints: q, k and v; the MLP's gate and up in some formats.

        Those of the MLP beside experts are one layer in every format.

        Other layers that read the same tensor keep what they have, factors on their input as well.
        """
        description, layers = plugins().describe_model(model), dict(quantized_layers(model))
        gated = fused_groups(description, (GATED_ROLES,))
        blocks = () if description is None else description.blocks
        one_layer = {block.roles.get("mlp.up") for block in blocks if EXPERTS in block.roles}
        joined = [
            group
            for group in gated
            if one_layer & set(group) or all(_joins_gate(layers.get(name)) for name in group)
        ]
        return [*fused_groups(description, (ATTENTION_ROLES,)), *joined]

    def shared_state(self, weights: Sequence[QuantSpec], shapes: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Return what weights of joined layers share: scales of whole tensors, on either level."""
        if weights[0].global_max is not None:
            return ("global_amax",)
        granularity = weights[0].unstacked().granularity
        return ("amax",) if isinstance(granularity, PerTensor) and not weights[0].dynamic else ()

    def joins(self, names: Sequence[str], layers: Sequence[LayerFormat]) -> bool:
        """Return whether layers that engines join have one scale for all: q, k and v; gate and up in some formats."""
        known = [format_for(layer) for layer in layers]
        is_attention = any(name.endswith(QUERY_NAMES) for name in names)
        return is_attention or all(each is not None and each.joins_gate for each in known)

    def smoothing_folds(self, layer: LayerFormat) -> SmoothingFolds:
        """Return that nothing is folded: factors on inputs have a place of their own."""
        return SmoothingFolds()

    def has_place_for(self, layer: QuantModule, quantizer: str) -> bool:
        """Whether checkpoints hold what `quantizer` of `layer` does: weights, their inputs, keys and values."""
        if isinstance(layer, QuantAttention):
            return quantizer in CACHE_QUANTIZERS
        return bool(layer.quantized_weights()) and quantizer != "output_quantizer"

    def activation_state(
        self, quantizer: str, spec: QuantSpec, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state that the stored scale stands for: FP8 caches have one of at least 1."""
        divisor = largest_value(spec)
        scale = scale_from_state(state, divisor)
        if quantizer in CACHE_QUANTIZERS and is_fp8_cache(spec):
            scale = scale.clamp_min(SMALLEST_FP8_SCALE)
        return state_from_scale(scale, spec, divisor)


def _joins_gate(layer: QuantModule | None) -> bool:
    known = None if layer is None else format_for(format_of(layer, WeightSlot()))
    return known is not None and known.joins_gate
