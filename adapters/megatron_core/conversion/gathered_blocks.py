"""The blocks of a Hugging Face model, filled with what the ranks of its Megatron model hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.placing import put
from octavo.adapters.megatron_core.conversion.shares import SharedTensors
from octavo.adapters.megatron_core.conversion.tensors import MegatronTensor
from octavo.core.calibration.forward_loop import ForwardLoop
from octavo.core.errors import ExportError, UnsupportedError
from octavo.core.model.blocks import Block, CapturedCall, InMemoryBlocks


class GatheredBlocks:
    """See `core.model.blocks.BlockSource`; a block has values on rank 0, while it is asked for.

    Args:
        original: The model, on the meta device.
        shared: The parameters of all ranks.
    """

    def __init__(self, original: Original, shared: SharedTensors) -> None:
        self._original, self._shared = original, shared
        self._model = original.skeleton.model
        self._places = original.skeleton.layout.places()
        self._makers = self._made_by()

    def blocks(self) -> Iterator[Block]:
        """Yield each block once; the last one, named '', holds every tensor outside the others."""
        return InMemoryBlocks(self._model, self._original.description).blocks()

    def materialized(self, block: Block) -> AbstractContextManager[nn.Module]:
        """Return a context in which the block's tensors have their values; its value is the module."""
        return self._filled(block)

    def captured_calls(self, block: Block, forward_loop: ForwardLoop) -> list[CapturedCall]:
        """Refuse: a model that is only written has no calls."""
        raise UnsupportedError("a gathered model cannot be run; calibrate its Megatron model instead")

    @contextmanager
    def _filled(self, block: Block) -> Iterator[nn.Module]:
        state = self._model.state_dict(keep_vars=True)
        empty = {id(state[name]): state[name] for name in block.tensors if state[name].is_meta}
        filled = {key: nn.Parameter(self._gathered(parameter), False) for key, parameter in empty.items()}
        held = [
            (module, own, parameter)
            for module in block.module.modules()
            for own, parameter in module._parameters.items()
            if id(parameter) in filled
        ]
        for module, own, parameter in held:
            module._parameters[own] = filled[id(parameter)]
        try:
            yield block.module
        finally:
            for module, own, parameter in held:
                module._parameters[own] = parameter

    def _made_by(self) -> dict[int, list[MegatronTensor]]:
        """Return by which tensors each parameter is filled; of tied ones the first has its values."""
        state = self._model.state_dict(keep_vars=True)
        taken: set[tuple[int, int | None, int, int]] = set()
        makers: dict[int, list[MegatronTensor]] = {}
        for tensor in self._original.tensors.values():
            places = [(self._places[part.name], part.start) for part in tensor.parts]
            keys = {(id(state[p.name]), p.index, p.segment, start) for p, start in places}
            if not keys & taken:
                taken |= keys
                for parameter in {key[0] for key in keys}:
                    makers.setdefault(parameter, []).append(tensor)
        return makers

    def _gathered(self, parameter: Tensor) -> Tensor:
        """Return a parameter's values, from the ranks that have parts of it."""
        values = torch.empty(parameter.shape, dtype=parameter.dtype)
        for tensor in self._makers.get(id(parameter), []):
            if tensor.name not in self._shared:
                raise ExportError(
                    f"no rank has {tensor.name}, which {self._original.directory} asks for: the model is not that of "
                    "its config"
                )
            views = self._views(tensor, parameter, values)
            for share, part in self._shared.parts(tensor.name):
                put(part, share, tensor, views)
        return values

    def _views(self, tensor: MegatronTensor, parameter: Tensor, values: Tensor) -> list[Tensor | None]:
        """Return where each part of a tensor is in `values`, the new ones of `parameter`; None for another's."""
        state = self._model.state_dict(keep_vars=True)
        views: list[Tensor | None] = []
        for part in tensor.parts:
            place = self._places[part.name]
            view = place.of(values) if state[place.name] is parameter else None
            if view is not None:
                view = (view.T if part.is_transposed else view).narrow(0, part.start, part.shape[0])
            views.append(view)
        return views
