"""A quantized model, finalized for a dialect, as what its checkpoint is written from."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

import torch
from torch import Tensor, nn

from octavo.core.calibration.finalize import folded_layers
from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.errors import ExportError
from octavo.core.formats import QuantSpec
from octavo.core.model.activation_scales import CACHE_QUANTIZERS
from octavo.core.model.blocks import Block, BlockSource, blocks_of
from octavo.core.model.checkpoint_layout import CheckpointLayout, Place
from octavo.core.model.checkpoint_source import PackedWeight
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.finite import is_finite
from octavo.core.model.module_names import module_names
from octavo.core.model.stored_weight import StoredWeight, input_state
from octavo.core.modules import PackedParameter, QuantAttention, quantized_layers
from octavo.core.plugins import plugins
from octavo.core.report.weight_error import WeightErrors


class ModelSource:
    """See `core.model.checkpoint_source.CheckpointSource`.

    Args:
        model: The model, finalized.
        weights: Its quantized weights, by the parameter's name.
        layout: Where its checkpoint has them.
        dtype: Of the tensors that are not quantized; None: each its own.
        errors: Takes in how far codes are from weights.
        blocks: The blocks that the model is read in; None: those that it is described to have.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, StoredWeight],
        layout: CheckpointLayout,
        dtype: torch.dtype | None,
        errors: WeightErrors,
        blocks: BlockSource | None = None,
    ) -> None:
        self._model = model
        self._weights = weights
        self._layout = layout
        self._dtype = dtype
        self._errors = errors
        self._blocks = blocks or blocks_of(model, plugins().describe_model(model))
        names = module_names(layout.names)
        self.dtype = dtype or dtype_of(model)
        self.modules = set(names.values())
        self.layers: dict[str, LayerFormat] = {}
        self.folded: set[str] = set()
        for new, place in layout.places().items():
            if place.name in weights:
                self._add_layer(new.removesuffix(".weight"), weights[place.name])
        self.excluded = [names.get(name, name) for name in left_out_modules(model, weights)]
        self._caches = {
            f"{names.get(name, name)}.{quantizer}": state
            for name, layer in quantized_layers(model)
            if isinstance(layer, QuantAttention)
            for quantizer in CACHE_QUANTIZERS
            if (state := input_state(layer, quantizer)) is not None and state.spec is not None
        }
        self.cache: QuantSpec | None = next((state.spec for state in self._caches.values()), None)

    def tensors(self) -> Iterator[PackedWeight | tuple[str, Tensor]]:
        """Yield every tensor, block by block; tied ones once, under their first name.

        Raises:
            ExportError: a tensor that is not quantized is not finite, or scales do not divide among segments.
        """
        tied = self._model.state_dict(keep_vars=True)
        written: set[int] = set()
        places: dict[str, list[tuple[str, Place]]] = {}
        for new, place in self._layout.places().items():
            places.setdefault(place.name, []).append((new, place))
        for block in self._blocks.blocks():
            with self._blocks.materialized(block) as module:
                yield from self._of_block(block, module, tied, places, written)

    def _of_block(
        self,
        block: Block,
        module: nn.Module,
        tied: Mapping[str, Tensor],
        places: Mapping[str, list[tuple[str, Place]]],
        written: set[int],
    ) -> Iterator[PackedWeight | tuple[str, Tensor]]:
        """Yield the tensors of one block, of which nothing is kept when the next one gets its values."""
        values = module.state_dict(prefix=f"{block.name}." if block.name else "")
        for name in block.tensors:
            if name not in places or id(tied[name]) in written:
                continue
            written.add(id(tied[name]))
            if name in self._weights:
                yield from self._weights[name].packed(self._layout, self._errors)
                continue
            value = _plain_value(name, values[name], self._dtype)
            yield from ((new, place.of(value).contiguous()) for new, place in places[name])

    def cache_states(self) -> Mapping[str, InputState]:
        """Return what quantizes keys and values; only where there are scales or biases."""
        return {n: state for n, state in self._caches.items() if state.state or state.bias_value is not None}

    def _add_layer(self, name: str, weight: StoredWeight) -> None:
        layer_format = format_of(weight.layer, weight.slot)
        assert layer_format is not None  # noqa: S101 (the exporter has found a name for it)
        self.layers[name] = layer_format
        if weight.layer_name in folded_layers(self._model):
            self.folded.add(name)


def left_out_modules(model: nn.Module, weights: Container[str]) -> list[str]:
    """Return the modules with a weight of two dims or more, or stacked weights, none of which is quantized."""
    return [name for name, module in model.named_modules() if _is_left_out(name, module, weights)]


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first parameter with floats."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _is_left_out(name: str, module: nn.Module, weights: Container[str]) -> bool:
    if isinstance(module, PackedParameter):
        return False
    own = dict(module.named_parameters(name, recurse=False))
    matrices = [
        own_name
        for own_name, parameter in own.items()
        if parameter.dim() == 3 or (parameter.dim() > 1 and own_name.rpartition(".")[2] == "weight")
    ]
    return bool(matrices) and not any(matrix in weights for matrix in matrices)


def _plain_value(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor that is not quantized in the dtype to write it in."""
    value = value.to(dtype) if dtype and value.is_floating_point() else value
    if value.is_floating_point() and value.itemsize > 1 and not is_finite(value):
        raise ExportError(
            f"{name} has NaN or infinite values as {value.dtype}, which no engine computes with; repair the model, or "
            "choose a dtype with a larger range"
        )
    return value
