"""Packed weights that products are tried on, and what the products are: float64 sums of the reference's values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from helpers.ops_cases import INT4_PADDED, NVFP4_STATIC, normal, state_of
from octavo.core import formats
from octavo.core.formats import PerBlock, PerChannel, Quantized, QuantSpec


def _blocks(length: int) -> PerBlock:
    return PerBlock(((-1, length),))


FORMATS = {
    "int4 g32": QuantSpec("int4", _blocks(32)),
    "int4 g128": QuantSpec("int4", _blocks(128)),
    "int4 channel": QuantSpec("int4", PerChannel(0)),
    "int4 g24 ragged": INT4_PADDED,
    "int4 g5": QuantSpec("int4", _blocks(5)),
    "uint4 g16": QuantSpec("uint4", _blocks(16)),
    "int8 channel": QuantSpec("int8", PerChannel(0)),
    "int8 tensor": QuantSpec("int8"),
    "int8 narrow g64": QuantSpec("int8_narrow", _blocks(64)),
    "uint8 channel": QuantSpec("uint8", PerChannel(0)),
    "int2 g16": QuantSpec("int2", _blocks(16)),
    "int3 g64": QuantSpec("int3", _blocks(64)),
    "int6 channel": QuantSpec("int6", PerChannel(0)),
    "nvfp4": NVFP4_STATIC,
    "e4m3 tensor": QuantSpec("e4m3"),
    "e4m3 channel": QuantSpec("e4m3", PerChannel(0)),
    "e4m3 128x128": QuantSpec("e4m3", PerBlock(((-1, 128), (-2, 128)))),
    "e5m2 tensor": QuantSpec("e5m2"),
    "mxfp4": QuantSpec("e2m1", _blocks(32), "e8m0", dynamic=True),
    "mxfp6 e3m2": QuantSpec("e3m2", _blocks(32), "e8m0", dynamic=True),
    "mxfp6 e2m3": QuantSpec("e2m3", _blocks(32), "e8m0", dynamic=True),
    "mxfp8": QuantSpec("e4m3", _blocks(32), "e8m0", dynamic=True),
    "mxint8": QuantSpec("int8", _blocks(32), "e8m0", dynamic=True),
}


class Packed(NamedTuple):
    """A packed weight and the values that the reference reads from it."""

    parts: Quantized
    spec: QuantSpec
    values: Tensor


def packed(spec: QuantSpec, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Packed:
    weight = normal(*shape, seed=seed) * 0.05
    if spec.element.startswith("u"):
        weight = weight.abs()
    parts = formats.quantize(weight, state_of(weight, spec), spec)
    return Packed(parts, spec, formats.dequantize(*parts, spec, shape, dtype))


def packed_stack(spec: QuantSpec, *shape: int, dtype: torch.dtype = torch.float32) -> Packed:
    """Return `shape[0]` experts."""
    experts = [packed(spec, *shape[1:], dtype=dtype, seed=seed) for seed in range(1, shape[0] + 1)]
    columns = [
        [part for part in column if part is not None]
        for column in zip(*(e.parts for e in experts), strict=True)
    ]
    parts = [torch.stack(column) if column else None for column in columns]
    return Packed(Quantized(*parts), spec.stacked(), torch.stack([e.values for e in experts]))


def exact(x: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the product in float64."""
    return torch.nn.functional.linear(x.double(), values.double(), None if bias is None else bias.double())


def assert_product(found: Tensor, x: Tensor, values: Tensor, bias: Tensor | None = None) -> None:
    """Check that `found` is the product, summed in fp32 in some order and rounded once to its dtype."""
    expected = exact(x, values, bias)
    magnitudes = exact(x.abs(), values.abs(), None if bias is None else bias.abs())
    # Sums of n products in fp32 by lanes: the error stays below √n · 2^-24 of the sum of magnitudes, with room.
    sums = magnitudes * 2.0**-24 * (4 + max(x.shape[-1], 1) ** 0.5)
    last_bit = expected.abs() * torch.finfo(found.dtype).eps * 0.5
    error = (found.double() - expected).abs()
    assert found.shape == expected.shape
    worst = (error - sums - last_bit - torch.finfo(found.dtype).smallest_normal).max() if error.numel() else 0
    assert worst <= 0, f"off by {error.max()} where {expected.abs().max()} is the largest value"
