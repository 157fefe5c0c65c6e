"""Packed weights of every format that products read, beside memory that no kernel may touch."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

from octavo.core import formats
from octavo.core.formats import PerBlock, PerChannel, PerTensor, Quantized, QuantSpec, compute_amax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B16, B32, B64, B128 = (PerBlock(((-1, length),)) for length in (16, 32, 64, 128))
SQUARE = PerBlock(((-1, 32), (-2, 16)))

FORMATS = {
    "int4 g32": QuantSpec("int4", B32),
    "int4 g64": QuantSpec("int4", B64),
    "int4 g128": QuantSpec("int4", B128),
    "int4 per channel": QuantSpec("int4", PerChannel(0)),
    "uint4": QuantSpec("uint4", B32),
    "int8 per channel": QuantSpec("int8", PerChannel(0)),
    "int8 per tensor": QuantSpec("int8_narrow", PerTensor()),
    "nvfp4": QuantSpec("e2m1", B16, "e4m3", 2688.0),
    "mxfp4": QuantSpec("e2m1", B32, "e8m0", dynamic=True),
    "fp8 per tensor": QuantSpec("e4m3"),
    "fp8 per channel": QuantSpec("e4m3", PerChannel(0)),
    "fp8 square blocks": QuantSpec("e4m3", SQUARE),
    "mxfp8": QuantSpec("e4m3", B32, "e8m0", dynamic=True),
    "mxfp8 e5m2": QuantSpec("e5m2", B32, "e8m0", dynamic=True),
    "mxint8": QuantSpec("int8", B32, "e8m0", dynamic=True),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(weight: Tensor, spec: QuantSpec) -> Quantized:
    """Return the codes and scales of a weight [out, in], or of stacked ones, each with its own second-level scale."""
    if spec.is_stacked:
        peaks = weight.abs().amax((-2, -1))
    else:
        peaks = weight.abs().max() if weight.numel() else weight.new_zeros(())
    known = {"amax": compute_amax(weight, spec), "global_amax": peaks.float()}
    return formats.quantize(weight, [known[name] for name in spec.state], spec)


def values(weight: Quantized, spec: QuantSpec, num_in: int, dtype: torch.dtype) -> Tensor:
    """Return what codes and scales stand for, rounded to `dtype`, by the reference."""
    return formats.dequantize(*weight, spec, (*weight.payload.shape[:-1], num_in), dtype)


def on_device(weight: Quantized) -> Quantized:
    return Quantized(*(None if part is None else part.to(DEVICE) for part in weight))


def fenced_parts(weight: Quantized) -> Quantized:
    """Return codes and scales on the device, each `fenced`."""
    return Quantized(*(None if part is None else fenced(part.to(DEVICE)) for part in weight))


def fenced(x: Tensor) -> Tensor:
    """Return a copy whose last byte lies before a page that nothing may touch: whoever does, crashes.

    Only in the host's memory; a tensor on another device is returned as it is.
    """
    if x.device.type != "cpu" or x.numel() == 0:
        return x
    room = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + room), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    raw = torch.frombuffer(memory, dtype=torch.uint8, count=x.nbytes, offset=room - x.nbytes)
    raw.copy_(x.contiguous().reshape(-1).view(torch.uint8))
    return raw.view(x.dtype).view(x.shape)
