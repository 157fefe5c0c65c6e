"""What a unified HF checkpoint's bytes stand for, by numpy alone: its own file parser, decoders and layouts.

Written from ../shared/specs/unified-hf.md (section 4) and modelopt.md (section 3), sharing no code with octavo.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

_DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I64": np.dtype(np.int64),
}
_PAIRS_OF_ROWS = ("W4A16_AWQ", "W4A8_AWQ")
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def read_tensors(directory: Path) -> dict[str, Array]:
    """Parse every safetensors file of a folder."""
    tensors: dict[str, Array] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        tensors |= read_file(path)
    return tensors


def read_file(path: Path) -> dict[str, Array]:
    """Parse one safetensors file."""
    tensors: dict[str, Array] = {}
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        raw = np.frombuffer(data[start + first : start + last], _DTYPES[entry["dtype"]])
        tensors[name] = raw.reshape(entry["shape"])
    return tensors


def quant_algo_of(directory: Path, module: str) -> str:
    """Return the algorithm of one layer by hf_quant_config.json, in upper case."""
    config = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]
    if config["quant_algo"] == "MIXED_PRECISION":
        return str(config["quantized_layers"][module]["quant_algo"]).upper()
    return str(config["quant_algo"]).upper()


def quantized_modules(tensors: Mapping[str, Array]) -> list[str]:
    """Return the layers that carry scales for their weight."""
    return [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]


def dequantize(directory: Path, tensors: Mapping[str, Array], module: str) -> Floats:
    """Return the fp32 values of a layer's weight, each product rounded once.

    With two levels the product of block scale and second-level scale is rounded to fp32 first.
    """
    algorithm = quant_algo_of(directory, module)
    weight, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"]
    codes = _codes(algorithm, weight)
    if algorithm == "FP8_PB_WO":
        return codes * _square(scale, codes.shape)
    if algorithm.startswith(("MX", "W4A8_MX", "W4A16_MX")):
        return codes * _along_rows(_powers_of_two(scale), codes.shape)
    if "NVFP4" in algorithm:
        second = tensors[f"{module}.weight_scale_2"].reshape(())
        return codes * _along_rows(scale.astype(np.float32) * second, codes.shape)
    if algorithm in _PAIRS_OF_ROWS:
        values = codes * _along_rows(scale.astype(np.float32), codes.shape)
        if algorithm == "W4A16_AWQ":
            return values
        second = tensors[f"{module}.weight_scale_2"].astype(np.float32).reshape(())
        return (values / second).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * second
    if algorithm == "FP8":
        return codes * scale.astype(np.float32).reshape(())
    if algorithm in ("FP8_PER_CHANNEL_PER_TOKEN", "W8A8_SQ_PER_CHANNEL", "W8A16"):
        return codes * scale.astype(np.float32)[:, None]
    raise AssertionError(f"the oracle does not know {algorithm}")


def as_bits(values: Floats, dtype: str) -> Array:
    """Return the values in `dtype` (`bfloat16`, `float32`) as integers, so that −0 is not 0."""
    if dtype == "bfloat16":
        return values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return values.astype(np.float32).view(np.uint32)


def _codes(algorithm: str, weight: Array) -> Floats:
    if algorithm == "MXFP6":
        return _e3m2(weight)
    if weight.dtype != np.uint8:
        return weight.astype(np.float32)
    low, high = weight & 0xF, weight >> 4
    if algorithm in _PAIRS_OF_ROWS:  # byte [j, i] holds rows 2j and 2j + 1
        nibbles = np.empty((2 * weight.shape[0], weight.shape[1]), np.float32)
        nibbles[0::2], nibbles[1::2] = low, high
        return nibbles - 16 * (nibbles > 7)
    columns = np.empty((weight.shape[0], 2 * weight.shape[1]), np.uint8)
    columns[:, 0::2], columns[:, 1::2] = low, high
    return _E2M1[columns]


def _e3m2(weight: Array) -> Floats:
    """Read six-bit codes, four in each three bytes, the first one in the lowest bits."""
    bits = np.unpackbits(weight.reshape(weight.shape[0], -1), axis=1, bitorder="little")
    codes = np.packbits(bits.reshape(weight.shape[0], -1, 6), axis=2, bitorder="little")[..., 0]
    return codes.view(ml_dtypes.float6_e3m2fn).astype(np.float32)


def _powers_of_two(scale: Array) -> Floats:
    return scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)


def _along_rows(scale: Array, shape: tuple[int, ...]) -> Floats:
    """Repeat [rows, blocks] to [rows, columns]."""
    return np.repeat(scale.astype(np.float32), shape[1] // scale.shape[1], axis=1)


def _square(scale: Array, shape: tuple[int, ...]) -> Floats:
    """Repeat [⌈o/128⌉, 1, ⌈i/128⌉, 1], or a scalar, to [o, i]."""
    blocks = scale.astype(np.float32).reshape(-(-shape[0] // 128), -(-shape[1] // 128))
    if scale.ndim == 4:
        assert scale.shape == (blocks.shape[0], 1, blocks.shape[1], 1)
    return np.kron(blocks, np.ones((128, 128), np.float32))[: shape[0], : shape[1]]
