"""Dataflow probe: which layers read the same tensor, seen in one forward pass by tensor identity."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class InputRecorder:
    """Record, while its context is open, which layers are called with the very same input tensor.

    Only weak references are kept, so no activation lives longer than the model lets it.

    Args:
        layers: The layers to watch, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._groups: list[list[str]] = []
        self._by_id: dict[int, tuple[weakref.ref[Tensor], list[str]]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.called: set[str] = set()

    def __enter__(self) -> InputRecorder:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def groups(self) -> list[tuple[str, ...]]:
        """Return the groups of two and more layers that read one tensor, in the order they were seen."""
        return [tuple(group) for group in self._groups if len(group) > 1]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in self.called:
                return  # one call is enough, and a second one may read another tensor
            self.called.add(name)
            tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if tensor is not None:
                self._group_of(tensor).append(name)

        return record

    def _group_of(self, tensor: Tensor) -> list[str]:
        reference, group = self._by_id.get(id(tensor), (None, []))
        if reference is None or reference() is not tensor:  # unseen, or the id of a tensor that has died
            group = []
            self._groups.append(group)
            self._by_id[id(tensor)] = (weakref.ref(tensor), group)
        return group
