"""Configs for every format of compressed-tensors that Octavo writes."""

from __future__ import annotations

from itertools import chain
from typing import Any

Attributes = dict[str, Any]


def rules(
    weights: Attributes, inputs: Attributes | None = None, where: str = "*_proj"
) -> list[dict[str, Any]]:
    """Return rules that give weights and inputs of some layers these formats."""
    off = {"quantizer_name": f"{where}.input_quantizer", "enable": False}
    on = {"quantizer_name": f"{where}.input_quantizer", "cfg": inputs}
    return [{"quantizer_name": f"{where}.weight_quantizer", "cfg": weights}, on if inputs else off]


def config(*given: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a config of rules, with everything else off."""
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *chain(*given)], "algorithm": "max"}


def integers(bits: int, group: int | None = None) -> Attributes:
    """Return attributes of INT weights in groups, or in channels."""
    return {"num_bits": bits, "axis": 0} if group is None else {"num_bits": bits, "block_sizes": {-1: group}}


FP8, FP8_CHANNEL = {"num_bits": (4, 3), "axis": None}, {"num_bits": (4, 3), "axis": 0}
FP8_BLOCK = {"num_bits": (4, 3), "block_sizes": {-1: 128, -2: 128}}
FP8_TOKEN = {"num_bits": (4, 3), "type": "dynamic", "block_sizes": {-1: None}}
FP8_GROUP = {"num_bits": (4, 3), "type": "dynamic", "block_sizes": {-1: 128}}
INT8, INT8_TOKEN = (
    {"num_bits": 8, "axis": None},
    {"num_bits": 8, "type": "dynamic", "block_sizes": {-1: None}},
)
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
MX = {"block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
MXFP4, MXFP6, MXFP8 = {"num_bits": (2, 1), **MX}, {"num_bits": (2, 3), **MX}, {"num_bits": (4, 3), **MX}
FP8_KV = [{"quantizer_name": "*[kv]_bmm_quantizer", "cfg": FP8}]

PACKED = {"weight_packed", "weight_scale", "weight_shape"}
WHOLE = {"weight", "weight_scale"}
TWO_LEVELS = {"weight_packed", "weight_scale", "weight_global_scale"}
# config, format, suffixes of a layer's tensors
CASES: dict[str, tuple[Any, str, set[str]]] = {
    "INT8": (config(rules(integers(8), INT8)), "int-quantized", {*WHOLE, "input_scale"}),
    "INT8 tensor": (config(rules(INT8, INT8)), "int-quantized", {*WHOLE, "input_scale"}),
    "INT8 dynamic": (config(rules(integers(8), INT8_TOKEN)), "int-quantized", WHOLE),
    "INT8 tensor dynamic": (config(rules(INT8, INT8_TOKEN)), "int-quantized", WHOLE),
    "W4A8": (config(rules(integers(4, 32), INT8_TOKEN)), "int-quantized", WHOLE),
    "W8A16": (config(rules(integers(8))), "pack-quantized", PACKED),
    "W8A16 group": (config(rules(integers(8, 32))), "pack-quantized", PACKED),
    "W4A16": (config(rules(integers(4, 32))), "pack-quantized", PACKED),
    "W4A16 channel": (config(rules(integers(4))), "pack-quantized", PACKED),
    "W3A16": (config(rules(integers(3, 32))), "pack-quantized", PACKED),
    "W5A16 channel": (config(rules(integers(5))), "pack-quantized", PACKED),
    "W4AFP8": (config(rules(integers(4, 128), FP8_TOKEN)), "pack-quantized", PACKED),
    "FP8": (config(rules(FP8, FP8)), "float-quantized", {*WHOLE, "input_scale"}),
    "FP8 tensor dynamic": (config(rules(FP8, FP8_TOKEN)), "float-quantized", WHOLE),
    "FP8 channel": (config(rules(FP8_CHANNEL, FP8_TOKEN)), "float-quantized", WHOLE),
    "FP8 channel static": (config(rules(FP8_CHANNEL, FP8)), "float-quantized", {*WHOLE, "input_scale"}),
    "FP8 block": (config(rules(FP8_BLOCK, FP8_GROUP)), "float-quantized", WHOLE),
    "FP8 weights": (config(rules(FP8_CHANNEL)), "naive-quantized", WHOLE),
    "FP8 block weights": (config(rules(FP8_BLOCK)), "naive-quantized", WHOLE),
    "NVFP4": (config(rules(NVFP4, NVFP4)), "nvfp4-pack-quantized", {*TWO_LEVELS, "input_global_scale"}),
    "NVFP4 weights": (config(rules(NVFP4)), "nvfp4-pack-quantized", TWO_LEVELS),
    "MXFP4": (config(rules(MXFP4, MXFP4)), "mxfp4-pack-quantized", {"weight_packed", "weight_scale"}),
    "MXFP4 weights": (config(rules(MXFP4)), "mxfp4-pack-quantized", {"weight_packed", "weight_scale"}),
    "MXFP4 FP8": (config(rules(MXFP4, FP8_GROUP)), "mxfp4-pack-quantized", {"weight_packed", "weight_scale"}),
    "MXFP6": (config(rules(MXFP6, MXFP8)), "mxfp6-pack-quantized", {"weight_packed", "weight_scale"}),
    "MXFP8": (config(rules(MXFP8, MXFP8)), "mxfp8-quantized", WHOLE),
    "MXFP8 weights": (config(rules(MXFP8)), "mxfp8-quantized", WHOLE),
    "FP8 with a cache": (config(rules(FP8, FP8), FP8_KV), "float-quantized", {*WHOLE, "input_scale"}),
    "mixture": (
        config(rules(integers(4, 32)), rules(NVFP4, NVFP4, "*self_attn*"), rules(FP8, FP8, "*down_proj")),
        "mixed-precision", {*WHOLE, "input_scale"},
    ),
}  # fmt: skip
