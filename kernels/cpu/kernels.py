"""The compiled kernels for the CPU, as `core.ops.kernels` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.kernels.cpu import packed_product, squared_error
from octavo.kernels.cpu.codes import dequantize, quantize
from octavo.kernels.cpu.elementwise import amax, fake_quantize, fake_quantize_backward
from octavo.kernels.cpu.library import library

# Of weights that are read as matrices; each module says which formats it leaves to the reference.
_OF_MATRICES = {
    "squared_error": squared_error,
    "packed_linear": packed_product,
    "packed_expert_linear": packed_product,
}
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    **{each.__name__: each for each in (amax, fake_quantize, fake_quantize_backward, quantize, dequantize)},
    **{name: getattr(module, name) for name, module in _OF_MATRICES.items()},
}


class CpuKernels:
    """Operators compiled for the CPU (`core.ops.kernels.Kernels`), bit for bit those of the reference."""

    name = "cpu"
    device_type = "cpu"

    def missing(self) -> str | None:
        """Return why there is no compiled library, or None."""
        return library().missing

    def operators(self) -> Mapping[str, Callable[..., Any]]:
        """Return a function for each operator that is compiled."""
        return _OPERATORS

    def declines(self, operator: str, spec: str) -> str | None:
        """Return why `operator` is left to the reference for `spec`, or None."""
        if operator in _OF_MATRICES:
            return _OF_MATRICES[operator].declines(spec)
        return None if operator in self.operators() else "not compiled"


CPU = CpuKernels()
