"""Parameters that are divided among ranks, whole for the time of a context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from torch import nn

from octavo.core.errors import PluginError
from octavo.core.model.sharded import is_dtensor, is_sharded
from octavo.core.plugins import plugins

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@contextmanager
def gathered(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Give parameters of a module all of their values, for the time of a context, in which they may only be read.

    Those that are whole stay as they are. For the others all ranks have to enter the context, in one order: each
    gets the whole, and gives it up at the end.

    Args:
        module: The module that holds them.
        names: Their names in it; names of something else are passed over.

    Raises:
        PluginError: no plugin knows how to gather them.
    """
    wanted = set(names)
    everything = module.named_parameters(remove_duplicate=False)
    divided = {name: one for name, one in everything if name in wanted and is_sharded(one)}
    with gathered_parameters(module, divided):
        yield


@contextmanager
def gathered_parameters(module: nn.Module, divided: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Put the whole of divided parameters, given by their names, into a module for the time of a context."""
    foreign = {name: one for name, one in divided.items() if not is_dtensor(one)}
    context = plugins().gathered_parameters(tuple(foreign.values())) if foreign else None
    if foreign and context is None:
        raise PluginError(
            f"{next(iter(foreign))} is divided among ranks ({len(foreign)} parameters are), and no plugin gathers it; "
            "for ZeRO-3 that is 'deepspeed_zero' (`octavo plugins` lists them, OCTAVO_PLUGINS_OFF leaves some out)"
        )
    if context is None:
        with _in_place(module, _whole(divided)):
            yield
        return
    with context, _in_place(module, _whole(divided)):
        yield


def _whole(divided: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return all of each parameter; of one under several names once."""
    found: dict[int, nn.Parameter] = {}
    for parameter in divided.values():
        if id(parameter) not in found:
            found[id(parameter)] = _full(parameter) if is_dtensor(parameter) else parameter
    return {name: found[id(parameter)] for name, parameter in divided.items()}


def _full(parameter: nn.Parameter) -> nn.Parameter:
    tensor = cast("DTensor", parameter.detach())
    # The backend of the mesh carries tensors of its own devices only; offloaded parameters are elsewhere.
    there = cast("DTensor", tensor.to(tensor.device_mesh.device_type))
    values = there.full_tensor().to(tensor.device)
    return nn.Parameter(values, requires_grad=False)


@contextmanager
def _in_place(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let a module hold these parameters, by name, for the time of a context."""
    before: dict[str, nn.Parameter | None] = {}
    try:
        for name, parameter in parameters.items():
            holder, own = holder_of(module, name)
            before[name] = holder._parameters[own]
            holder._parameters[own] = parameter
        yield
    finally:
        for name, earlier in before.items():
            holder, own = holder_of(module, name)
            holder._parameters[own] = earlier


def holder_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the submodule that has a parameter itself, and the parameter's name there."""
    path, _, own = name.rpartition(".")
    return module.get_submodule(path), own
