"""The formats that keys and values can have in the cache, and the dialect's names for them."""

from __future__ import annotations

from dataclasses import replace

from octavo.core.formats import PerBlock, PerTensor, QuantSpec
from octavo.core.model.activation_scales import CACHE_QUANTIZERS

__all__ = ["CACHES", "CACHE_QUANTIZERS", "SMALLEST_FP8_SCALE", "cache_name", "is_fp8_cache"]

FP8_KV = QuantSpec("e4m3", PerTensor())
INT8_KV = QuantSpec("int8", PerTensor())
NVFP4_KV = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
CACHES = {"FP8": FP8_KV, "INT8": INT8_KV, "NVFP4": NVFP4_KV}
SMALLEST_FP8_SCALE = 1.0  # below it, the peer's files say 1: FP8 needs no scale to hold small values


def cache_name(spec: QuantSpec) -> str | None:
    """Return the name of a cache's format, or None when the dialect has none."""
    return next((name for name, known in CACHES.items() if spec == known), None)


def is_fp8_cache(spec: QuantSpec) -> bool:
    """Whether keys and values are FP8 with one scale."""
    return replace(spec, dynamic=False) == FP8_KV
