"""ModelPart: one block of a model, or what is outside all blocks, as a model of its own with the same names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from octavo.core.model.blocks import CapturedCall


class ModelPart(nn.Module):
    """Some modules of a model, found under the names that they have there; they are the model's own.

    Args:
        model: The model.
        within: Name of the block; empty for what is outside of `without`.
        without: Names of blocks that are left out.
        call: A call of the block, for looking at who reads what; None where nothing can be run.
    """

    def __init__(
        self,
        model: nn.Module,
        within: str = "",
        without: Collection[str] = (),
        call: CapturedCall | None = None,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_block", model.get_submodule(within) if within else None)
        self._call = call
        if within:
            _hang(self, within.split("."), model.get_submodule(within))
        else:
            _copy_shell(model, self, "", frozenset(without))

    def tiny_inputs(self) -> Mapping[str, Any] | None:
        """Return the arguments of a call, or None."""
        return None if self._call is None else {"call": self._call}

    def forward(self, call: CapturedCall) -> Any:
        """Run the block with the arguments of a call."""
        block: nn.Module = self.__dict__["_block"]
        return block(*call.args, **call.kwargs)


def _hang(root: nn.Module, path: list[str], block: nn.Module) -> None:
    for name in path[:-1]:
        inner = nn.Module()
        root.add_module(name, inner)
        root = inner
    root.add_module(path[-1], block)


def _copy_shell(module: nn.Module, shell: nn.Module, name: str, without: frozenset[str]) -> None:
    """Give `shell` the tensors of `module` itself, and its children but those left out."""
    shell._parameters, shell._buffers = module._parameters, module._buffers
    shell._non_persistent_buffers_set = module._non_persistent_buffers_set
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}".removeprefix(".")
        if full in without:
            continue
        if any(block.startswith(f"{full}.") for block in without):
            inner = nn.Module()
            _copy_shell(child, inner, full, without)
            shell.add_module(child_name, inner)
        else:
            shell.add_module(child_name, child)
