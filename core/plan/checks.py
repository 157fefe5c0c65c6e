"""Checks: what would make a run fail or mislead, found before any work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from octavo.core.errors import listed
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec
from octavo.core.model.tied import sharing_names
from octavo.core.plan.settings import LayerSetting


def block_problems(layers: Iterable[LayerSetting]) -> Iterator[str]:
    """Yield an error for each quantizer whose last dim is no multiple of its block."""
    for layer in layers:
        for quantizer, stages in layer.quantizers.items():
            shape = layer.site.quantized.quantizer_shape(layer.site.layer, quantizer)
            for stage in stages:
                length = _block_length(stage.spec)
                if shape and length and shape[-1] % length:
                    yield (
                        f"{layer.site.quantizer_name(quantizer)}: last dim {shape[-1]} is not divisible by the "
                        f"block of {length} of {stage.spec}"
                    )


def state_problems(layers: Iterable[LayerSetting]) -> Iterator[str]:
    """Yield an error for each static quantizer whose calibrated state has no fixed shape.

    Axes that do not exist in a tensor of known rank have been refused before, by `decide_settings`.
    """
    for layer in layers:
        for quantizer, stages in layer.quantizers.items():
            shape = layer.site.quantized.quantizer_shape(layer.site.layer, quantizer)
            for stage in stages:
                if "amax" not in stage.spec.state or _has_fixed_state(stage.spec, shape):
                    continue
                yield (
                    f"{layer.site.quantizer_name(quantizer)}: static scales of {stage.spec} follow a dim that "
                    "varies from call to call; make the quantizer dynamic, or use one scale per tensor (axis None) "
                    "or per feature (axis -1)"
                )


def tied_problems(model: nn.Module, layers: Iterable[LayerSetting]) -> Iterator[str]:
    """Yield an error for each quantized weight that another module uses too."""
    sharing = sharing_names(model)
    slots = [(layer, slot) for layer in layers for slot in layer.site.quantized.weight_slots()]
    for layer, slot in slots:
        own_name = f"{layer.site.name}.{slot.parameter}".removeprefix(".")
        if own_name in sharing and slot.quantizer in layer.quantizers:
            yield (
                f"{own_name} is tied to {listed(sharing[own_name])}: quantizing one side would untie them. "
                f"Exclude it ({{'quantizer_name': '*{layer.site.name}*', 'enable': False}})"
            )


def unshared_notes(layers: Sequence[LayerSetting]) -> list[str]:
    """Return what it means that nobody knows which layers read the same tensor, where that matters."""
    sharing = [
        layer.site.name
        for layer in layers
        if "weight_quantizer" in layer.quantizers and any(map(_is_shared, _weight_and_inputs(layer)))
    ]
    if len(sharing) < 2:
        return []
    return [
        f"which of {len(sharing)} layers read the same tensor is unknown ({listed(sharing, 2)}): there is neither a "
        "family map nor a tiny forward pass that runs. Layers that an engine joins (query, key and value, or gate and "
        "up) keep per-tensor scales of their own, where the engine takes one for all: it may refuse them, or lose "
        "accuracy"
    ]


def block_sizes(spec: QuantSpec) -> tuple[tuple[int, int], ...]:
    """Return (dim, length) of each dim that the format divides into blocks; none for other granularities."""
    granularity = spec.unstacked().granularity
    return granularity.sizes if isinstance(granularity, PerBlock) else ()


def _weight_and_inputs(layer: LayerSetting) -> list[QuantSpec]:
    names = ("weight_quantizer", "input_quantizer")
    return [stage.spec for name in names for stage in layer.quantizers.get(name, ())]


def _is_shared(spec: QuantSpec) -> bool:
    """Whether layers that an engine joins have one such scale: a stored one of a whole tensor."""
    is_static_tensor = isinstance(spec.granularity, PerTensor) and not spec.dynamic
    return spec.global_max is not None or is_static_tensor


def _block_length(spec: QuantSpec) -> int | None:
    """Return the block length along the last dim where padding is not allowed: in one-dim blocks."""
    sizes = dict(block_sizes(spec))
    return sizes.get(-1) if len(sizes) == 1 else None


def _has_fixed_state(spec: QuantSpec, shape: tuple[int, ...] | None) -> bool:
    if isinstance(spec.granularity, PerTensor):
        return True
    if shape is None or 0 not in shape:  # 0 marks a dim that varies
        return shape is not None
    # The number of dims varies, too: only an axis counted from the end is certain.
    axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else 0
    return -len(shape) <= axis < 0 and shape[axis] > 0
