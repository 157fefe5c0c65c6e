"""Packed weights of every format and the dense tensors that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.packed_specs import B16, SPECS, some_tensor, state_of
from octavo.core.formats import PerChannel, QuantSpec
from octavo.core.packed import PackedChain, PackedTensor, PackedView

STACKED = {
    "stacked nvfp4": QuantSpec("e2m1", B16, "e4m3", 2688.0).stacked(),
    "stacked int8 per channel": QuantSpec("int8", PerChannel(0)).stacked(),
    "stacked fp8": QuantSpec("e4m3").stacked(),
}
CHAINS = {
    "int4, then fp8": (SPECS["int4 blocks"], SPECS["fp8"]),
    "int4, then int8 per channel": (SPECS["int4 blocks"], SPECS["int8 per channel"]),
}


def packed(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PackedTensor | PackedChain:
    """Return a weight [32, 64], or a stack [4, 32, 64], packed in a format of this name."""
    spec, then = CHAINS.get(name, (SPECS.get(name), None))
    if spec is None:
        spec = STACKED[name]
        x = some_tensor((4, 32, 64), dtype, seed)
        state = [state_of(one, spec.unstacked()) for one in x]
        return PackedTensor.pack(x, [torch.stack(parts) for parts in zip(*state, strict=True)], spec)
    x = some_tensor((32, 64), dtype, seed)
    first = PackedTensor.pack(x, state_of(x, spec), spec)
    return first if then is None else PackedChain(first, then, tuple(state_of(first.dequantize(), then)))


def view_and_dense(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[PackedView, Tensor]:
    """Return the view of `packed(name)` and its values."""
    weight = packed(name, dtype, seed)
    return PackedView(weight), weight.dequantize()


FLAT_NAMES = (*SPECS, *CHAINS)
ALL_NAMES = (*FLAT_NAMES, *STACKED)
