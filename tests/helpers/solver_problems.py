"""Small random weights with the Gram matrix of a correlated input, and formats to round them to."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.formats import PerBlock, PerChannel, QuantSpec


def block(length: int) -> PerBlock:
    return PerBlock(((-1, length),))


FORMATS = {
    "int8": QuantSpec("int8", PerChannel(0)),
    "int4": QuantSpec("int4", block(16)),
    "int3": QuantSpec("int3", block(16), arithmetic="divide"),
    "fp8": QuantSpec("e4m3"),
    "nvfp4": QuantSpec("e2m1", block(16), "e4m3", 2688.0),
    "mxfp4": QuantSpec("e2m1", block(32), "e8m0", scale_rounding="even"),
}


def problem(out: int = 24, num_columns: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight [out, in] and a Gram matrix [in, in], the mean over 256 tokens of unequal channels."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_columns, num_columns, generator=generator)
    tokens = torch.randn(256, num_columns, generator=generator) @ mixing
    tokens *= torch.rand(num_columns, generator=generator) + 0.1
    return torch.randn(out, num_columns, generator=generator), tokens.T @ tokens / 256
