"""The blocks of a Hugging Face model, filled with what the ranks of its Megatron model hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.placing import put
from octavo.adapters.megatron_core.conversion.shares import SharedTensors
from octavo.adapters.megatron_core.conversion.tensors import MegatronTensor, Part
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
        state = self._model.state_dict(keep_vars=True)
        self._parameter_of = {name: id(state[place.name]) for name, place in self._places.items()}
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
        values = self._gathered(empty)
        held = [
            (module, own, parameter)
            for module in block.module.modules()
            for own, parameter in module._parameters.items()
            if id(parameter) in values
        ]
        filled = {key: nn.Parameter(value, requires_grad=False) for key, value in values.items()}
        for module, own, parameter in held:
            module._parameters[own] = filled[id(parameter)]
        try:
            yield block.module
        finally:
            for module, own, parameter in held:
                module._parameters[own] = parameter

    def _made_by(self) -> dict[int, list[MegatronTensor]]:
        """Return by which tensors each parameter is filled; of tied ones the first has its values."""
        taken: set[tuple[int, int | None, int, int]] = set()
        makers: dict[int, list[MegatronTensor]] = {}
        for tensor in self._original.tensors.values():
            keys = {self._key(part) for part in tensor.parts}
            if not keys & taken:
                taken |= keys
                for parameter in {key[0] for key in keys}:
                    makers.setdefault(parameter, []).append(tensor)
        return makers

    def _key(self, part: Part) -> tuple[int, int | None, int, int]:
        place = self._places[part.name]
        return self._parameter_of[part.name], place.index, place.segment, part.start

    def _gathered(self, parameters: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the values of parameters, from the ranks that have parts of them, each part asked for once."""
        values = {key: torch.empty(one.shape, dtype=one.dtype) for key, one in parameters.items()}
        makers = {tensor.name: tensor for key in values for tensor in self._makers.get(key, [])}
        for tensor in makers.values():
            if tensor.name not in self._shared:
                raise ExportError(
                    f"no rank has {tensor.name}, which {self._original.directory} asks for: the model is not that of "
                    "its config"
                )
            views = [self._view(part, values) for part in tensor.parts]
            for share, part in self._shared.parts(tensor.name):
                put(part, share, tensor, views)
        return values

    def _view(self, part: Part, values: Mapping[int, Tensor]) -> Tensor | None:
        """Return where a part is in the parameters that are filled; None where it is in none of them."""
        parameter = values.get(self._parameter_of[part.name])
        if parameter is None:
            return None
        view = self._places[part.name].of(parameter)
        return (view.T if part.is_transposed else view).narrow(0, part.start, part.shape[0])
