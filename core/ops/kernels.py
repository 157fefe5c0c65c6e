"""Kernels: what computes an operator on a device, and why others do not; the reference computes the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from torch import Tensor

from octavo.core.errors import ConfigError, nearest

REFERENCE = "reference"
VARIABLE = "OCTAVO_KERNELS"


class Kernels(Protocol):
    """The operators as one backend computes them on one kind of device, bit for bit as the reference does.

    Attributes:
        name: What `OCTAVO_KERNELS` calls it: `cpu`, `triton`.
        device_type: torch's name of the devices: `cpu`, `cuda`.
    """

    name: str
    device_type: str

    def missing(self) -> str | None:
        """Return what this machine lacks for it to run at all, or None."""

    def operators(self) -> Mapping[str, Callable[..., Any]]:
        """Return a function for each operator it computes, with the arguments of its schema.

        One that returns `NotImplemented` leaves that call to the reference. Called once, where nothing is missing.
        """

    def declines(self, operator: str, spec: str) -> str | None:
        """Return why it leaves `operator` for the chain of formats `spec` to the reference, or None."""


_only: list[tuple[str, ...]] = []
_references: dict[str, Callable[..., Any]] = {}


def refer(operator: str, function: Callable[..., Any]) -> None:
    """Let `function`, with the arguments of the operator's schema, compute what no kernel does."""
    _references[operator] = function


def run(operator: str, first: Tensor, *rest: Any) -> Any:
    """Return what the first kernel for the device of an operator's first tensor computes, or else the reference."""
    for function in _functions(first.device.type, selected()).get(operator, ()):
        result = function(first, *rest)
        if result is not NotImplemented:
            return result
    return _references[operator](first, *rest)


def selected() -> tuple[str, ...] | None:
    """Return the names of the kernels that may run, from `using` or `OCTAVO_KERNELS`; None for all.

    Raises:
        ConfigError: there are no kernels of such a name.
    """
    return _only[-1] if _only else _parse(os.environ.get(VARIABLE, ""))


@contextmanager
def using(*names: str) -> Iterator[None]:
    """Let only these kernels run inside, beside the reference; `using("reference")` lets none.

    Raises:
        ConfigError: there are no kernels of such a name.
    """
    _only.append(_checked(names))
    try:
        yield
    finally:
        _only.pop()


def candidates(device_type: str) -> Sequence[Kernels]:
    """Return the kernels for a kind of device, whether they can run here or not."""
    return [kernels for kernels in all_kernels() if kernels.device_type == device_type]


def unselected(kernels: Kernels) -> str | None:
    """Return why these kernels may not run, or None."""
    names = selected()
    if names is None or kernels.name in names:
        return None
    return f"{VARIABLE}={','.join(names)}"


@cache
def _functions(device_type: str, names: tuple[str, ...] | None) -> dict[str, list[Callable[..., Any]]]:
    found: dict[str, list[Callable[..., Any]]] = {}
    for kernels in candidates(device_type):
        if (names is None or kernels.name in names) and kernels.missing() is None:
            for operator, function in kernels.operators().items():
                found.setdefault(operator, []).append(function)
    return found


@cache
def _parse(text: str) -> tuple[str, ...] | None:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    return _checked(names) if names else None


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    known = [REFERENCE, *(kernels.name for kernels in all_kernels())]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no kernels {name!r} for {VARIABLE}; known: {', '.join(known)}.{nearest(name, known)}"
            )
    return names


@cache
def all_kernels() -> Sequence[Kernels]:
    """Return what plugins brought, whether it can run here or not."""
    from octavo.core.plugins import plugins  # which imports layers, and they the operators

    return plugins().kernels()
