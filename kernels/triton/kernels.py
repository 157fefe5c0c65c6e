"""What these kernels are: the object that the plugin names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch

from octavo.kernels.triton import gemm_operators, packing, rounding
from octavo.kernels.triton.support import declined

OPERATORS: Mapping[str, Callable[..., Any]] = {
    "amax": rounding.amax,
    "fake_quantize": rounding.fake_quantize,
    "fake_quantize_backward": rounding.fake_quantize_backward,
    "rotated_fake_quantize": rounding.rotated_fake_quantize,
    "quantize": packing.quantize,
    "dequantize": packing.dequantize,
    "packed_linear": gemm_operators.packed_linear,
    "packed_expert_linear": gemm_operators.packed_expert_linear,
}
_PRODUCTS = ("packed_linear", "packed_expert_linear")
_OLDEST = (8, 0)  # compute capability that has bfloat16


class TritonKernels:
    """Kernels for NVIDIA devices, compiled by Triton when they are first called; see `core.ops.kernels.Kernels`."""

    name = "triton"
    device_type = "cuda"

    def missing(self) -> str | None:
        """Return what this machine lacks: Triton, a device, or one that is new enough."""
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if not torch.cuda.is_available():
            return "no CUDA device"
        found = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
        if found < _OLDEST:
            return f"compute capability {found[0]}.{found[1]}; {_OLDEST[0]}.{_OLDEST[1]} or newer is needed"
        return None

    def operators(self) -> Mapping[str, Callable[..., Any]]:
        """Return the operators that have kernels."""
        return OPERATORS

    def declines(self, operator: str, spec: str) -> str | None:
        """Return why `operator` is left to the reference for the formats `spec`, or None."""
        if operator not in OPERATORS:
            return "no kernel for this operator"
        return gemm_operators.declined(spec) if operator in _PRODUCTS else declined(spec)


TRITON = TritonKernels()
