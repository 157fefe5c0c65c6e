"""A model in memory, finalized for this dialect, as the source of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.errors import ExportError, listed
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_writer import model_layout
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.module_names import module_names
from octavo.core.model.stored_weight import StoredWeight, input_state
from octavo.core.modules import QuantAttention, quantized_layers
from octavo.core.packed import PackedChain, PackedTensor
from octavo.core.report.weight_error import WeightErrors
from octavo.exporters.tensorrt_llm.caches import CACHE_QUANTIZERS
from octavo.exporters.tensorrt_llm.formats import format_for
from octavo.exporters.tensorrt_llm.inspection import QuantizedParts


class ModelWeights:
    """The tensors of a model by their names in checkpoints; see `source.WeightSource`.

    Codes are made when they are asked for, and those of one parameter are kept until another is asked for.

    Args:
        model: The model.
        parts: What of it is quantized.
        for_reader: Hand out plain weights where the engine builder's reader wants these.
        config: Its hyperparameters, as in the framework's config.json.
        errors: Takes in how far codes are from the values.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: QuantizedParts,
        for_reader: bool,
        config: Mapping[str, Any],
        errors: WeightErrors,
    ) -> None:
        self.config = config
        weights, layout = parts.weights, model_layout(model, parts.weights)
        self.modules = module_names(layout.names)
        self._tensors = model.state_dict(keep_vars=True)
        self._places, self._layout, self._errors = layout.places(), layout, errors
        self._layers = {
            name.removesuffix(".weight"): weights[place.name]
            for name, place in self._places.items()
            if place.name in weights
        }
        self.layers = {name: _format_of(weight) for name, weight in self._layers.items()}
        self._weights = {n: w for n, w in weights.items() if not (for_reader and _is_plain_for_reader(w))}
        _check_are_there({name: weight for name, weight in weights.items() if name not in self._weights})
        self.experts = experts_of(layout, self.modules)
        self._caches = {
            self.modules.get(name, name): layer
            for name, layer in quantized_layers(model)
            if isinstance(layer, QuantAttention)
        }
        self._packed_name, self._packed = "", dict[str, PackedTensor | PackedChain]()

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self._places.keys()

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._places

    def tensor(self, name: str) -> Tensor | PackedTensor | PackedChain:
        """Return a tensor: packed where it is quantized, and [out, in]; as the model has it elsewhere."""
        place = self._places[name]
        if place.name not in self._weights:
            return place.of(self._tensors[place.name].detach())
        if place.name != self._packed_name:
            weight = self._weights[place.name]
            parts = weight.packed(self._layout, self._errors)
            self._packed_name = place.name
            self._packed = {f"{part.module}.weight": part.packed for part in parts}
        return self._packed[name]

    def inputs(self, layer: str) -> InputState | None:
        """Return what is done to the input of a quantized layer, or None for nothing."""
        weight = self._layers.get(layer)
        return None if weight is None else input_state(weight.layer, weight.slot.inputs)

    def cache(self, block: str) -> dict[str, InputState]:
        """Return what quantizes keys and values of the attention layer in a block, by the quantizer's short name."""
        found = {}
        for layer in (layer for name, layer in self._caches.items() if name.startswith(f"{block}.")):
            for name in CACHE_QUANTIZERS:
                stage = layer.quantizers()[name].stages()[0]
                if stage.enabled and stage.spec is not None:
                    found[name] = InputState(stage.spec, stage.named_state())
        return found


def experts_of(
    layout: CheckpointLayout, modules: Mapping[str, str]
) -> dict[str, dict[str, tuple[tuple[str, ...], ...]]]:
    """Return `WeightSource.experts` of a model whose modules have other names in checkpoints."""
    found: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {}
    for name, parts in layout.parts.items():
        module, _, parameter = name.rpartition(".")
        found.setdefault(modules.get(module, module), {})[parameter] = parts
    return found


def _format_of(weight: StoredWeight) -> LayerFormat:
    found = format_of(weight.layer, weight.slot)
    if found is None:
        raise ExportError(
            f"{weight.layer_name}: its weight is not quantized any more; export the model again"
        )
    return found


def _check_are_there(plain: Mapping[str, StoredWeight]) -> None:
    """Refuse codes in place of weights that the engine builder's reader quantizes itself."""
    packed = [name for name, weight in plain.items() if weight.held is not None]
    if packed:
        raise ExportError(
            f"TensorRT-LLM's reader quantizes {listed(packed, 2)} itself, from the original weights, which are packed; "
            "export the model before compressing it, or without a target"
        )


def _is_plain_for_reader(weight: StoredWeight) -> bool:
    known = format_for(_format_of(weight))
    return known is not None and known.plain_for_reader
