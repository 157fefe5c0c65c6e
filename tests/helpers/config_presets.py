"""The attributes that presets are made of, written anew from ../shared/specs/modelopt.md, 1.1."""

from __future__ import annotations

from typing import Any

INT8_CHANNEL, INT8 = {"axis": 0}, {}
INT4 = {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}
FP8 = {"num_bits": (4, 3)}
FP8_CHANNEL = {"num_bits": (4, 3), "axis": 0}
FP8_TOKEN = {"num_bits": (4, 3), "type": "dynamic", "block_sizes": {-1: None}}
FP8_SQUARE = {"num_bits": (4, 3), "block_sizes": {-1: 128, -2: 128}}


def blocks(num_bits: Any, length: int, scale_bits: tuple[int, int], **options: Any) -> dict[str, Any]:
    block_sizes = {-1: length, "type": "dynamic", "scale_bits": scale_bits, **options}
    return (
        {"block_sizes": block_sizes} if num_bits == 8 else {"num_bits": num_bits, "block_sizes": block_sizes}
    )


NVFP4 = {**blocks((2, 1), 16, (4, 3)), "effective_bits": 4.5}
NVFP4_32 = blocks((2, 1), 32, (4, 3))
STATIC = blocks((2, 1), 16, (4, 3), type="static")
FOUR_OVER_SIX = blocks((2, 1), 16, (4, 3), type="static", four_over_six=1)
MXFP8, MXFP6, MXFP4, MXINT8 = (blocks(bits, 32, (8, 0)) for bits in ((4, 3), (3, 2), (2, 1), 8))
AWQ, AWQ_FULL = {"method": "awq_lite", "alpha_step": 0.1}, {"method": "awq_full", "alpha_step": 0.1}
SWEEP = {"fp8_scale_sweep": True}
MSE = {"method": "mse", "start_multiplier": 1.0, "stop_multiplier": 1.5, "step_size": 0.5}


def layer(name: str) -> str:
    return f"model.layers.0.{name}"
