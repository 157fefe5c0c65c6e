"""Quantized tensors as data."""

from octavo.core.packed.packed_affine import PackedAffine
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor

__all__ = ["PackedAffine", "PackedChain", "PackedTensor"]
