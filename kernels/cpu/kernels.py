"""The compiled kernels for the CPU, as `core.ops.kernels` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.kernels.cpu import packed_product, squared_error
from octavo.kernels.cpu.codes import dequantize, quantize
from octavo.kernels.cpu.elementwise import amax, fake_quantize, fake_quantize_backward
from octavo.kernels.cpu.library import library

_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "amax": amax,
    "fake_quantize": fake_quantize,
    "fake_quantize_backward": fake_quantize_backward,
    "quantize": quantize,
    "dequantize": dequantize,
    "squared_error": squared_error.squared_error,
    "packed_linear": packed_product.packed_linear,
    "packed_expert_linear": packed_product.packed_expert_linear,
}
# Those of weights that are read as matrices say which formats they leave to the reference.
_DECLINES: Mapping[str, Callable[[str], str | None]] = {
    "squared_error": squared_error.declines,
    "packed_linear": packed_product.declines,
    "packed_expert_linear": packed_product.declines,
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
        if operator in _DECLINES:
            return _DECLINES[operator](spec)
        return None if operator in self.operators() else "not compiled"


CPU = CpuKernels()
