"""The formats that keys and values can have in the cache, and the dialect's names for them."""

from __future__ import annotations

from dataclasses import replace

from octavo.core.formats import PerBlock, PerTensor, QuantSpec

FP8_KV = QuantSpec("e4m3", PerTensor())
NVFP4_KV = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
CACHE_QUANTIZERS = ("k_bmm_quantizer", "v_bmm_quantizer")
CACHES = {"FP8": FP8_KV, "NVFP4": NVFP4_KV}


def cache_name(spec: QuantSpec) -> str | None:
    """Return the name of a cache's format, calibrated or dynamic, or None when the dialect has none."""
    if replace(spec, dynamic=False) == FP8_KV:
        return "FP8"
    return "NVFP4" if spec == NVFP4_KV else None
