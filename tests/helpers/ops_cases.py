"""Formats, tensors and calibrated state that the operators are tried on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec, chain_key, compute_amax

BLOCKS_OF_16 = PerBlock(((-1, 16),))
INT8 = QuantSpec("int8")
INT8_CHANNEL = QuantSpec("int8", PerChannel(0))
INT4_BLOCK = QuantSpec("int4", BLOCKS_OF_16)
E4M3 = QuantSpec("e4m3")
E4M3_TOKEN = QuantSpec("e4m3", PerToken(), dynamic=True)
E4M3_SQUARE = QuantSpec("e4m3", PerBlock(((-1, 32), (-2, 32))))
NVFP4 = QuantSpec("e2m1", BLOCKS_OF_16, "e4m3", 2688.0, dynamic=True)
NVFP4_STATIC = QuantSpec("e2m1", BLOCKS_OF_16, "e4m3", 2688.0)
MXFP6 = QuantSpec("e3m2", PerBlock(((-1, 32),)), "e8m0", dynamic=True)
MXFP4 = QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True)
INT4_PADDED = QuantSpec("int4", PerBlock(((-1, 24),)), dynamic=True)

SPECS = [
    INT8, INT8_CHANNEL, INT4_BLOCK, E4M3, E4M3_TOKEN, E4M3_SQUARE, NVFP4, NVFP4_STATIC, MXFP6, MXFP4, INT4_PADDED,
]  # fmt: skip
STATIC_SPECS = [spec for spec in SPECS if not spec.dynamic]
NOTHING = chain_key([])

# INT4 values stored as FP8 of a group: a dynamic and a static stage of another granularity, too.
CHAINS = {
    "one": [INT4_BLOCK],
    "int4_then_fp8": [INT4_BLOCK, E4M3],
    "dynamic_then_static": [MXFP4, INT8],
    "static_then_dynamic": [NVFP4, E4M3_TOKEN],
    "three": [NVFP4_STATIC, INT8, E4M3],
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def state_of(x: Tensor, *specs: QuantSpec, factor: float = 0.6) -> list[Tensor]:
    """Return calibrated state for a chain; below 1, `factor` makes some values saturate."""
    x = x.detach()
    state = []
    for spec in specs:
        known = {"amax": compute_amax(x, spec) * factor, "global_amax": x.float().abs().max() * factor}
        state += [known[name] for name in spec.state]
    return state


def composition(
    x: Tensor, weight: Tensor, bias: Tensor | None, x_side: tuple[Any, ...], weight_side: tuple[Any, ...]
) -> Tensor:
    """Return what `fake_quantized_linear` stands for, from its parts; a side is (state, key, range_mask)."""
    return torch.nn.functional.linear(
        ops.fake_quantize(x, *x_side), ops.fake_quantize(weight, *weight_side), bias
    )


def fused(
    x: Tensor, weight: Tensor, bias: Tensor | None, x_side: tuple[Any, ...], weight_side: tuple[Any, ...]
) -> Tensor:
    """Call `fake_quantized_linear` with the arguments of `composition`."""
    (x_state, x_key, x_mask), (weight_state, weight_key, weight_mask) = x_side, weight_side
    return ops.fake_quantized_linear(
        x, weight, bias, x_state, x_key, weight_state, weight_key, x_mask, weight_mask
    )
