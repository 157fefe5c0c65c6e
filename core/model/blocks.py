"""BlockSource: a model handed out block by block, wherever its weights live."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from octavo.core.calibration.forward_loop import ForwardLoop, run_forward_loop
from octavo.core.model.description import ModelDescription

_LENT = "_octavo_blocks"


@dataclass(frozen=True)
class Block:
    """A part of a model that is worked on at once.

    Attributes:
        name: The module's name in the model; empty for what lies outside all blocks.
        module: The module.
        tensors: Names in the model of the parameters and persistent buffers that belong to it.
    """

    name: str
    module: nn.Module
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class CapturedCall:
    """The arguments of one call of a block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class BlockSource(Protocol):
    """Hands out a model's blocks in the order they run, then the rest."""

    def blocks(self) -> Iterator[Block]:
        """Yield each block once; the last one, named '', holds every tensor outside the others."""

    def materialized(self, block: Block) -> AbstractContextManager[nn.Module]:
        """Return a context in which the block's tensors have their values; its value is the module."""

    def captured_calls(self, block: Block, forward_loop: ForwardLoop) -> list[CapturedCall]:
        """Run `forward_loop` and return the arguments that `block` was called with."""


class InMemoryBlocks:
    """The blocks of a model whose weights are all in memory.

    Args:
        model: The model.
        description: Its description, or None: then the whole model is one block.
    """

    def __init__(self, model: nn.Module, description: ModelDescription | None) -> None:
        self._model = model
        self._names = [block.name for block in description.blocks] if description is not None else []

    def blocks(self) -> Iterator[Block]:
        """Yield each block once; the last one, named '', holds every tensor outside the others."""
        tensors = list(self._model.state_dict(keep_vars=True))
        taken: set[str] = set()
        for name in self._names:
            own = tuple(tensor for tensor in tensors if tensor.startswith(f"{name}."))
            taken.update(own)
            yield Block(name, self._model.get_submodule(name), own)
        yield Block("", self._model, tuple(tensor for tensor in tensors if tensor not in taken))

    def materialized(self, block: Block) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is the block's module; its weights are there already."""
        return nullcontext(block.module)

    def captured_calls(self, block: Block, forward_loop: ForwardLoop) -> list[CapturedCall]:
        """Run `forward_loop` and return the arguments that `block` was called with, as they were at the call.

        Tensors are kept by reference. Everything else is copied: a block fills the cache that it is given, and
        a second run with that cache would see its keys twice.
        """
        calls: list[CapturedCall] = []

        def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {name: _kept(value) for name, value in kwargs.items()}
            calls.append(CapturedCall(tuple(map(_kept, args)), given))

        with block.module.register_forward_pre_hook(capture, with_kwargs=True):
            run_forward_loop(self._model, forward_loop, quiet=True)
        return calls


@contextmanager
def blocks_from(model: nn.Module, source: BlockSource) -> Iterator[None]:
    """Let `source` hand out the blocks of `model`, whose weights are elsewhere, for the time of a context."""
    model.__dict__[_LENT] = source
    try:
        yield
    finally:
        del model.__dict__[_LENT]


def blocks_of(model: nn.Module, description: ModelDescription | None) -> BlockSource:
    """Return what hands out the blocks of `model`: what `blocks_from` names, or the model's own memory."""
    lent: BlockSource | None = model.__dict__.get(_LENT)
    return InMemoryBlocks(model, description) if lent is None else lent


def _kept(value: Any) -> Any:
    return value if isinstance(value, Tensor) else copy.deepcopy(value)
