"""Sole readers: which layers read what a module made, where nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from octavo.core.graph.evaluating import evaluating
from octavo.core.graph.nested import tensors_in

_IGNORED = {"__get__", "size", "dim"}  # reading .shape, .dtype or .size() is no use of the values


class SoleReaders(TorchFunctionMode):
    """Watch, in one forward pass, who uses the tensors that some modules make.

    A tensor counts as used by a reader if the reader is called with that very tensor. Every other use is seen where
    torch's functions are called with it outside of readers: a residual, a router, a view of it.

    Args:
        makers: The modules whose outputs are watched, by name.
        readers: The layers that may read them, by name.

    Attributes:
        called: The makers and readers that ran.
        used_elsewhere: Makers that ran more than once, or whose output something that is no reader uses, too.
    """

    def __init__(self, makers: Mapping[str, nn.Module], readers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._makers, self._readers = dict(makers), dict(readers)
        self._made: dict[int, tuple[Tensor, str]] = {}  # the tensors are kept, so that their ids stay theirs
        self._inside = 0
        self._read: dict[str, str] = {}
        self.called: set[str] = set()
        self.used_elsewhere: set[str] = set()

    def maker_of(self, reader: str) -> str | None:
        """Return the module whose output a reader read."""
        return self._read.get(reader)

    def readers_of(self, maker: str) -> tuple[str, ...]:
        """Return the layers that read a module's output."""
        return tuple(name for name, made_by in self._read.items() if made_by == maker)

    def watch(self, model: nn.Module, inputs: Mapping[str, Any]) -> SoleReaders:
        """Run `model(**inputs)` in eval mode under watch."""
        with ExitStack() as stack:
            for name, maker in self._makers.items():
                stack.callback(maker.register_forward_hook(self._note_made(name)).remove)
            for name, reader in self._readers.items():
                before = reader.register_forward_pre_hook(self._note_read(name), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(reader.register_forward_hook(self._leave).remove)
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            with self:
                output = model(**inputs)
        self._note_uses(output)
        self._made.clear()
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and note watched tensors that it is called with outside of readers."""
        if not self._inside and getattr(func, "__name__", "") not in _IGNORED:
            self._note_uses((args, kwargs))
        return func(*args, **(kwargs or {}))

    def _note_made(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            if name in self.called or not isinstance(output, Tensor):
                self.used_elsewhere.add(name)
            else:
                self._made[id(output)] = (output, name)
            self.called.add(name)

        return note

    def _note_read(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            makers = {
                self._made[id(value)][1] for value in tensors_in((args, kwargs)) if id(value) in self._made
            }
            if len(makers) == 1 and name not in self.called:
                self._read[name] = next(iter(makers))
            elif name in self._read:  # called again, perhaps with another tensor
                self.used_elsewhere |= {*makers, self._read[name]}
            else:
                self.used_elsewhere |= makers
            self.called.add(name)
            self._inside += 1

        return note

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._inside -= 1

    def _note_uses(self, values: Any) -> None:
        for tensor in tensors_in(values):
            if id(tensor) in self._made:
                self.used_elsewhere.add(self._made[id(tensor)][1])
