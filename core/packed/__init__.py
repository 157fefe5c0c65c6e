"""Quantized tensors as data."""

from octavo.core.packed import view_ops, view_products  # noqa: F401  (importing registers what views can do)
from octavo.core.packed.packed_affine import PackedAffine
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor
from octavo.core.packed.packed_view import PackedView

__all__ = ["PackedAffine", "PackedChain", "PackedTensor", "PackedView"]
