"""Quantized tensors as data."""

from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor

__all__ = ["PackedChain", "PackedTensor"]
