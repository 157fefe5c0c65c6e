"""One look at all of a checkpoint before it is converted: formats, shapes, and the scales that layers may share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from octavo.core.conversion.numbers import neutral, stored_state
from octavo.core.errors import CheckpointError, ExportError, listed
from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.model.activation_scales import CACHE_QUANTIZERS
from octavo.core.model.exporter import InputState, LayerFormat, QuantizedCheckpoint
from octavo.core.packed import PackedAffine, PackedChain, PackedTensor


@dataclass(frozen=True)
class SurveyedWeight:
    """One quantized weight, without its codes.

    Attributes:
        layer: Its format, and its input's; neutral in how is rounded.
        spec: Format of the weight; of the stack where it is one.
        shape: Its shape.
        scale: State that stands for the scale that all of it has; empty where only blocks have some.
    """

    layer: LayerFormat
    spec: QuantSpec
    shape: tuple[int, ...]
    scale: dict[str, Tensor]


@dataclass(frozen=True)
class Survey:
    """What a checkpoint holds.

    Attributes:
        names: Names of all tensors; of quantized weights those of the codes.
        weights: The quantized weights, by layer; stacks by tensor.
        modules: Modules that have tensors.
        excluded: Layers with weights that are not quantized.
        activations: What quantizes inputs, and corrects weights, by the quantizer's full name.
        caches: The same for keys and values, where there are scales.
        cache: Format of keys and values, or None.
    """

    names: set[str] = field(default_factory=set)
    weights: dict[str, SurveyedWeight] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    excluded: list[str] = field(default_factory=list)
    activations: dict[str, InputState] = field(default_factory=dict)
    caches: dict[str, InputState] = field(default_factory=dict)
    cache: QuantSpec | None = None


def survey(checkpoint: QuantizedCheckpoint) -> Survey:
    """Read every tensor of a checkpoint once, and keep none.

    Raises:
        CheckpointError: a tensor is damaged or missing.
        ExportError: codes have zero points; layers are named.
    """
    weights: dict[str, SurveyedWeight] = {}
    excluded: set[str] = set()
    modules: set[str] = set()
    names: set[str] = set()
    affine: list[str] = []
    for name, value in checkpoint.tensors():
        module, _, last = name.rpartition(".")
        modules.add(module)
        names.add(name)
        if isinstance(value, PackedAffine):
            affine.append(layer_name(name))
        elif not isinstance(value, Tensor):
            own = layer_name(name)
            weights[own] = _surveyed(checkpoint, own, value)
        elif value.dim() == 3 or (value.dim() > 1 and last == "weight"):
            excluded.add(module)
    if affine:
        raise ExportError(
            f"{checkpoint.directory} has codes with zero points, which are read and not written: {listed(affine, 3)}; "
            "octavo.load_quantized makes a model of it"
        )
    missing = sorted(checkpoint.layers.keys() - weights.keys())
    if missing:
        raise CheckpointError(f"{checkpoint.directory} has scales and no codes of {listed(missing)}")
    states = checkpoint.activations()
    caches = {name: state for name, state in states.items() if name.endswith(CACHE_QUANTIZERS)}
    without_scales = checkpoint.cache_without_scales()
    formats = [state.spec for state in (*caches.values(), *without_scales.values())]
    return Survey(
        names,
        weights,
        modules,
        sorted(excluded | _said_to_be_excluded(checkpoint, weights)),
        {name: state for name, state in states.items() if name not in caches},
        caches,
        next(iter(formats), None),
    )


def layer_name(name: str) -> str:
    """Return the layer of a quantized weight; a stack is called by its tensor."""
    return name.removesuffix(".weight")


def _surveyed(
    checkpoint: QuantizedCheckpoint, name: str, value: PackedTensor | PackedChain
) -> SurveyedWeight:
    packed = value.first if isinstance(value, PackedChain) else value
    spec = neutral(packed.spec)
    layer = replace(checkpoint.layers[name], weight=spec.unstacked())
    # Blocks keep their scales also where a weight is a single one: engines join such weights block by block.
    is_one = isinstance(spec.granularity, PerTensor) or spec.global_max is not None
    scale = {part: tensor.clone() for part, tensor in stored_state(packed, spec).items() if is_one}
    return SurveyedWeight(layer, spec, packed.shape, scale)


def _said_to_be_excluded(checkpoint: QuantizedCheckpoint, weights: dict[str, SurveyedWeight]) -> set[str]:
    """Return layers that a checkpoint names as left out and has no tensor of: a tied head. Patterns are none."""
    said = checkpoint.describe().get("excluded", [])
    return {name for name in said if name.replace(".", "").replace("_", "").isalnum() and name not in weights}
