"""What this processor multiplies fast, as torch reports it."""

from __future__ import annotations

from functools import cache

import torch

_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def multiplies_int8() -> bool:
    """Return whether products of int8 are faster than those of fp32; without instructions of their own far slower."""
    return any(_capabilities().get(name) for name in _INT8)


def multiplies_bfloat16() -> bool:
    """Return whether products of bfloat16 are faster than those of fp32."""
    return any(_capabilities().get(name) for name in _BFLOAT16)


@cache
def _capabilities() -> dict[str, bool]:
    # Older versions of torch do not say.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities
