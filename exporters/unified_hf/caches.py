"""The formats that keys and values can have in the cache, and the dialect's names for them."""

from __future__ import annotations

from dataclasses import replace

from octavo.core.formats import PerBlock, PerTensor, QuantSpec
from octavo.core.model.activation_scales import CACHE_QUANTIZERS
from octavo.core.modules import QuantAttention
from octavo.core.quantizers import Bias

FP8_KV = QuantSpec("e4m3", PerTensor())
NVFP4_KV = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
NVFP4_AFFINE = "NVFP4_AFFINE"
CACHES = {"FP8": FP8_KV, "NVFP4": NVFP4_KV, NVFP4_AFFINE: NVFP4_KV}
BIAS = Bias((-4, -2))  # one for each channel of each head, however it was found


def cache_name(spec: QuantSpec, has_bias: bool = False) -> str | None:
    """Return the name of a cache's format, calibrated or dynamic, or None when the dialect has none.

    The peer's name of an FP8 cache does not tell whether there are biases.
    """
    if replace(spec, dynamic=False) == FP8_KV:
        return "FP8"
    if spec != NVFP4_KV:
        return None
    return NVFP4_AFFINE if has_bias else "NVFP4"


def stored_quantizers(layer: QuantAttention) -> tuple[str, ...]:
    """Return the quantizers of `layer` that a cache has a place for: none where keys or values are rotated.

    Neither has it one for biases of another shape, or that follow the values at hand.
    """
    quantizers = layer.quantizers()
    stages = {name: quantizers[name].stages()[0] for name in ("q_bmm_quantizer", *CACHE_QUANTIZERS)}
    biases = [stages[name].bias for name in CACHE_QUANTIZERS]
    is_storable = all(bias is None or (bias.axes == BIAS.axes and not bias.dynamic) for bias in biases)
    is_rotated = any(stage.rotation is not None for stage in stages.values())
    return CACHE_QUANTIZERS if is_storable and not is_rotated else ()
