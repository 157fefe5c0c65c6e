"""All parts of a streamed model together, as what its metadata are written from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.model.checkpoint_source import PackedWeight
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.model_source import dtype_of, left_out_modules
from octavo.core.model.module_names import module_names
from octavo.core.streaming.records import PartRecord, format_from_json, state_from_json
from octavo.core.streaming.streamed_model import StreamedModel


class StreamedSource:
    """See `core.model.checkpoint_source.CheckpointSource`; its tensors are written already.

    Args:
        opened: The model.
        record: Of all its parts.
    """

    def __init__(self, opened: StreamedModel, record: PartRecord) -> None:
        names = module_names(opened.layout.names)
        weights = set(record.weights)
        self.dtype = dtype_of(opened.model)
        self.modules = set(names.values())
        layers = [
            new.removesuffix(".weight")
            for new, place in opened.layout.places().items()
            if place.name in weights
        ]
        self.layers: dict[str, LayerFormat] = {name: format_from_json(record.layers[name]) for name in layers}
        self.folded = set(record.folded)
        left_out = left_out_modules(opened.model, weights)
        self.excluded = [names.get(name, name) for name in left_out]
        self.excluded += [name for name in _leftover_modules(opened) if name not in self.excluded]
        self.cache = None if record.cache is None else QuantSpec.from_json(record.cache)
        self._caches = {name: state_from_json(state) for name, state in record.caches.items()}

    def tensors(self) -> Iterator[PackedWeight | tuple[str, Tensor]]:
        """Yield nothing: they are written."""
        return iter(())

    def cache_states(self) -> Mapping[str, InputState]:
        """Return what quantizes keys and values; only where there are scales or biases."""
        return self._caches


def _leftover_modules(opened: StreamedModel) -> list[str]:
    """Return the modules of matrices that the model has no place for; they are copied as they are."""
    shapes = {name: opened.headers.tensors[name].shape for name in opened.weights.leftover}
    return list(dict.fromkeys(name.rpartition(".")[0] for name, shape in shapes.items() if len(shape) > 1))
