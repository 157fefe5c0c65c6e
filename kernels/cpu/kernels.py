"""The compiled kernels for the CPU, as `core.ops.kernels` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.kernels.cpu.codes import dequantize, quantize
from octavo.kernels.cpu.elementwise import amax, fake_quantize, fake_quantize_backward
from octavo.kernels.cpu.library import library
from octavo.kernels.cpu.packed_product import declines, packed_expert_linear, packed_linear

_PRODUCTS = (packed_linear, packed_expert_linear)
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (amax, fake_quantize, fake_quantize_backward, quantize, dequantize, *_PRODUCTS)
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
        if operator in {product.__name__ for product in _PRODUCTS}:
            return declines(spec)
        return None if operator in self.operators() else "not compiled"


CPU = CpuKernels()
