"""Formats of every kind, and the state that a tensor needs to be packed in them."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, compute_amax

B16, B32, SQUARE = PerBlock(((-1, 16),)), PerBlock(((-1, 32),)), PerBlock(((-1, 16), (-2, 16)))
NVFP4 = QuantSpec("e2m1", B16, "e4m3", 2688.0, dynamic=True)

SPECS = {
    "fp8": QuantSpec("e4m3"),
    "fp8, the dialect's rounding": QuantSpec("e4m3", arithmetic="divide_native"),
    "fp8 per channel": QuantSpec("e4m3", PerChannel(0)),
    "fp8 per token": QuantSpec("e4m3", PerToken(), dynamic=True),
    "fp8 square blocks": QuantSpec("e4m3", SQUARE),
    "e5m2": QuantSpec("e5m2"),
    "int8 per channel": QuantSpec("int8", PerChannel(0)),
    "int8 divided": QuantSpec("int8", PerChannel(0), arithmetic="divide"),
    "int8 narrow": QuantSpec("int8_narrow"),
    "int4 blocks": QuantSpec("int4", B32),
    "uint4": QuantSpec("uint4", B16),
    "int3": QuantSpec("int3", B16),
    "nvfp4": NVFP4,
    "nvfp4 static": QuantSpec("e2m1", B16, "e4m3", 2688.0),
    "mxfp8": QuantSpec("e4m3", B32, "e8m0", dynamic=True),
    "mxfp6": QuantSpec("e3m2", B32, "e8m0", dynamic=True),
    "mxfp4": QuantSpec("e2m1", B32, "e8m0", dynamic=True),
    "mxfp4, ties toward zero": QuantSpec("e2m1", B32, "e8m0", dynamic=True, ties="toward_zero"),
    "mxint8": QuantSpec("int8", B32, "e8m0", dynamic=True),
}


def state_of(x: Tensor, spec: QuantSpec) -> list[Tensor]:
    """The state that calibration finds for `x`, in the order of the spec."""
    values = {}
    if "amax" in spec.state:
        values["amax"] = compute_amax(x, spec)
    if "global_amax" in spec.state:
        values["global_amax"] = compute_amax(x, QuantSpec(spec.element, PerTensor()))
    return [values[name] for name in spec.state]


def some_tensor(
    shape: tuple[int, ...] = (32, 64), dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 3).to(dtype)
