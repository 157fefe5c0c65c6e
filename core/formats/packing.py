"""Packing codes narrower than a byte along the last dim, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.core.errors import ShapeError


def packed_length(num_codes: int, bits: int) -> int:
    """Return how many bytes `num_codes` codes of `bits` bits take; the last byte is filled with zeros."""
    return math.ceil(num_codes * bits / 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dim as one little-endian bit stream: code i fills bits [i·bits, (i+1)·bits).

    Four-bit codes so have the even column in the low nibble.

    Args:
        codes: uint8 [..., n], each below 2^bits.
        bits: 1 to 8.

    Returns:
        uint8 [..., ⌈n·bits/8⌉].
    """
    if bits == 8:
        return codes
    if bits == 4:
        even, odd = codes[..., ::2], codes[..., 1::2]
        return even | torch.nn.functional.pad(odd << 4, (0, codes.shape[-1] % 2))
    per_group = 8 // math.gcd(8, bits)  # codes that fill whole bytes together
    bytes_per_group = per_group * bits // 8
    padding = -codes.shape[-1] % per_group
    grouped = _grouped(codes, padding, per_group)
    shifts = torch.arange(per_group, device=codes.device) * bits
    words = (grouped << shifts).sum(-1, keepdim=True)
    byte_shifts = torch.arange(bytes_per_group, device=codes.device) * 8
    packed = ((words >> byte_shifts) & 0xFF).to(torch.uint8).flatten(-2)
    length = packed_length(codes.shape[-1], bits)
    return packed[..., :length].contiguous()


def unpack(packed: Tensor, bits: int, num_codes: int) -> Tensor:
    """Undo `pack`: return uint8 codes [..., num_codes].

    Raises:
        ShapeError: the last dim of `packed` does not hold `num_codes` codes.
    """
    if packed.shape[-1] != packed_length(num_codes, bits):
        raise ShapeError(
            f"{num_codes} codes of {bits} bits take {packed_length(num_codes, bits)} bytes, "
            f"found a last dim of {packed.shape[-1]} in shape {tuple(packed.shape)}"
        )
    if bits == 8:
        return packed
    if bits == 4:
        return torch.stack([packed & 0xF, packed >> 4], -1).flatten(-2)[..., :num_codes].contiguous()
    per_group = 8 // math.gcd(8, bits)
    bytes_per_group = per_group * bits // 8
    padding = -packed.shape[-1] % bytes_per_group
    grouped = _grouped(packed, padding, bytes_per_group)
    words = (grouped << (torch.arange(bytes_per_group, device=packed.device) * 8)).sum(-1, keepdim=True)
    shifts = torch.arange(per_group, device=packed.device) * bits
    codes = ((words >> shifts) & (2**bits - 1)).to(torch.uint8).flatten(-2)
    wanted: Tensor = codes[..., :num_codes]
    return wanted.contiguous()


def _grouped(values: Tensor, padding: int, length: int) -> Tensor:
    """Return int64 [..., n, length]: the last dim padded with zeros and cut into groups."""
    padded: Tensor = torch.nn.functional.pad(values, (0, padding))
    return padded.reshape(*padded.shape[:-1], padded.shape[-1] // length, length).long()
